//! Checkpoints: safetensors, the PyTorch `.pth` reader, names and shapes.
