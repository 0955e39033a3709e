"""Task embeddings by Fisher information, their similarity, and the task graph."""
