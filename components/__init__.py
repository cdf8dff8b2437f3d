"""The steps of the two pipelines: a thin Kubeflow shell each, over one call into the library.

A component reads its inputs, calls the library inside `recording`, and hands the numbers to Kubeflow as artifacts. The
image must hold omnifeed and kfp: nothing is installed when a step starts.
"""
