"""Generated protobuf messages; `python protos/generate.py` in Headroom's repository writes them. Not public."""
