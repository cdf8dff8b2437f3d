"""The monitoring pipeline, a recurring run: look at yesterday; where it drifted beyond its bounds, train again.

    monitor → training's own steps, where drift asks for them

The steps of a retraining are part of this run, not a run of their own: no step needs the rights to start runs, one
recurring run at a time means one retraining at a time, and Kubeflow's local runner does exactly what the cluster does.
"""

from kfp import dsl

from omnifeed.components.monitor.component import monitor
from omnifeed.components.record_end.component import record_end
from omnifeed.pipelines.cluster import MOUNT, stateful
from omnifeed.pipelines.training import train_challenger


@dsl.pipeline(name="omnifeed-monitoring", description="Yesterday against other days of the champion; drift retrains.")
def monitoring(config: str, run_id: str = "", now: int = 0, retrain: bool = True, home: str = MOUNT) -> None:
    """The DAG; `now` is log time in UTC microseconds, 0 on a live platform: the moment the step starts."""
    end = stateful(record_end(home=home, run_id=run_id, pipeline="monitoring"))
    with dsl.ExitHandler(end, name="record-how-it-ended"):
        looked = stateful(monitor(config=config, home=home, run_id=run_id, now=now, retrain=retrain))
        with dsl.If(looked.outputs["Output"] == "yes", name="drifted"):
            train_challenger(config, home, run_id)
