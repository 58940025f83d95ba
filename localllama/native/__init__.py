"""The only room that touches ctypes: llama.cpp's C API behind Python types."""
