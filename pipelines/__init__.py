"""The two Kubeflow pipelines, what they need of a cluster, and the `omnifeed` command."""
