"""The promotion pipeline, a recurring run: read the experiment's logs, decide, act, and keep what was served.

gate → act → collect
"""

from kfp import dsl

from omnifeed.components.act.component import act
from omnifeed.components.collect.component import collect
from omnifeed.components.gate.component import gate
from omnifeed.components.record_end.component import record_end
from omnifeed.pipelines.cluster import MOUNT, stateful


@dsl.pipeline(name="omnifeed-promotion", description="The verdict on the running experiment, and the act it earns.")
def promotion(config: str, run_id: str = "", now: int = 0, home: str = MOUNT) -> None:
    """The DAG; `now` is log time in UTC microseconds, 0 on a live platform: the moment the gate starts."""
    end = stateful(record_end(home=home, run_id=run_id, pipeline="promotion"))
    with dsl.ExitHandler(end, name="record-how-it-ended"):
        decided = stateful(gate(config=config, home=home, run_id=run_id, now=now))
        acted = stateful(act(home=home, run_id=run_id, now=decided.outputs["now"], verdict=decided.outputs["verdict"]))
        stateful(collect(home=home, run_id=run_id, experiment=decided.outputs["experiment"])).after(acted)
