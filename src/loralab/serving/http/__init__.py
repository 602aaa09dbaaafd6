"""The server: OpenAI's, vLLM's and llama.cpp's routes over an engine. Needs the extra ``serve``."""
