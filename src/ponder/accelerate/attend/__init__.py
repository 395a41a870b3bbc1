"""Attention plans: which keys each query meets (role AttentionPlan, core/attention_plan)."""
