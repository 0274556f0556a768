"""Published shards -> the tensors of a step: vocabulary, tasks, sequences, plan, packs, loader."""
