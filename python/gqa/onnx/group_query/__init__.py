"""The operator GroupQueryAttention of com.microsoft: its schema, its caches and its presents."""
