"""The GGUF engine: llama.cpp's server as a library (xllamacpp), behind the runner protocol."""
