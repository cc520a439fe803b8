"""Argo and Kubernetes: the parameters of a workflow, and clients of both servers."""
