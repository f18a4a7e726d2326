"""Models in llama.cpp's file format GGUF, turned into directories in hub layout."""
