"""The method and how it is judged: tensors and plain values in and out; reads like the paper."""
