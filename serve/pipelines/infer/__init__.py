"""One model of the repository, served as it is: what the Open Inference Protocol calls infer."""
