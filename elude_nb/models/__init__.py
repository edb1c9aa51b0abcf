"""Networks: weights, loading, where channels are sums, hooks, forward passes."""
