"""ONNX models: reading, checking and running them. Only `running` may be imported without the package onnx."""
