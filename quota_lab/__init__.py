"""The evidence: study, benchmarks, ablations, testbeds, the reference model and its suites. Not needed to use quota."""
