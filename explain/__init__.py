"""What scores, unlearners and attacks share to explain a model: embeddings and their neighbours, concepts,
counterfactuals."""
