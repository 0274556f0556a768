"""What a trained model is worth on held-out clips: likelihood, and the sound that it makes, beside two lines that bound it."""
