"""The page that a person reads after a run, and the artifacts that Kubeflow draws."""
