"""The stages: plan, pretrain, downstream, report and their helpers, one function each."""
