"""The only place that imports Ray: a local cluster or a joined one, gangs and their queue, fan-out, the sweep."""
