"""One folder per pipeline: contract, flow, stages. No Ray, gRPC, Redis or torch in here."""
