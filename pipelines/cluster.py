"""What the steps ask of a cluster: the shared volume, a GPU for training, and to be left uncached."""

from kfp import dsl, kubernetes

VOLUME_CLAIM = "omnifeed-home"
MOUNT = "/omnifeed"
GPU = "nvidia.com/gpu"


def stateful(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step that reads or writes the home: the volume is mounted, the cache is off, nothing runs as root."""
    task.set_caching_options(False)
    kubernetes.use_field_path_as_env(task, env_name="OMNIFEED_RUN", field_path="metadata.labels['pipeline/runid']")
    kubernetes.mount_pvc(task, pvc_name=VOLUME_CLAIM, mount_path=MOUNT)
    kubernetes.set_security_context(task, run_as_user=10001, run_as_group=10001, run_as_non_root=True)
    task.set_cpu_request("1").set_memory_request("2G").set_memory_limit("8G")
    return task


def on_gpu(task: dsl.PipelineTask) -> dsl.PipelineTask:
    """A step on a GPU node: one accelerator, the nodes' taint tolerated, shared memory for the loader."""
    task.set_accelerator_type(GPU).set_accelerator_limit(1).set_memory_limit("32G")
    kubernetes.add_toleration(task, key=GPU, operator="Exists", effect="NoSchedule")
    kubernetes.empty_dir_mount(task, volume_name="shm", mount_path="/dev/shm", medium="Memory", size_limit="4Gi")
    return task
