"""Looking at nodes before a long job: what each shows (node, gpus, bandwidth), and which of them are sick or slow (judge)."""
