"""The training pipeline: from logs to a challenger in front of a slice of the users.

    ingest → validate → materialize → train → evaluate → export → infra_validate → deploy
                                       champion ─┘ └ no better: ends here, green

The steps hand tables and models to each other as Kubeflow artifacts; releases, features, catalogue and ledger stand
under `home`, a volume that every step mounts. Steps that touch that state are never cached.
"""

from kfp import dsl

from omnifeed.components.champion.component import champion
from omnifeed.components.deploy.component import deploy
from omnifeed.components.evaluate.component import evaluate
from omnifeed.components.export.component import export
from omnifeed.components.infra_validate.component import infra_validate
from omnifeed.components.ingest.component import ingest
from omnifeed.components.materialize.component import materialize
from omnifeed.components.record_end.component import record_end
from omnifeed.components.train.component import train
from omnifeed.components.validate.component import validate
from omnifeed.pipelines.cluster import MOUNT, on_gpu, stateful


def train_challenger(config: str, home: str, run_id: str) -> None:
    """Add the steps to the pipeline that is being defined; monitoring opens the same ones when something drifted."""
    read = stateful(ingest(config=config, home=home, run_id=run_id))
    now = read.outputs["Output"]
    checked = stateful(validate(config=config, home=home, run_id=run_id, now=now, tables=read.outputs["tables"]))
    features = stateful(
        materialize(
            config=config,
            home=home,
            run_id=run_id,
            now=now,
            accepted=checked.outputs["accepted"],
            source=read.outputs["source"],
        )
    )
    serving = stateful(champion(config=config, home=home, run_id=run_id, now=now)).after(checked)
    trained = on_gpu(
        stateful(train(config=config, home=home, run_id=run_id, training_set=features.outputs["training_set"]))
    )
    compared = stateful(
        evaluate(
            config=config,
            home=home,
            run_id=run_id,
            champion=serving.output,
            training_set=features.outputs["training_set"],
            model=trained.outputs["model"],
        )
    )
    with dsl.If(compared.outputs["Output"] == "yes", name="at-least-as-good"):
        released = stateful(
            export(
                config=config,
                home=home,
                run_id=run_id,
                now=now,
                training_set=features.outputs["training_set"],
                model=trained.outputs["model"],
            )
        )
        answered = stateful(infra_validate(config=config, home=home, run_id=run_id, release=released.outputs["Output"]))
        stateful(
            deploy(
                config=config,
                home=home,
                run_id=run_id,
                now=now,
                champion=serving.output,
                release=released.outputs["Output"],
            )
        ).after(answered)


@dsl.pipeline(name="omnifeed-training", description="From logs to a challenger in front of a slice of the users.")
def training(config: str, run_id: str = "", home: str = MOUNT) -> None:
    """The DAG; `config` is `Config.to_json()`, `run_id` names the run (empty: Kubeflow's own id)."""
    end = stateful(record_end(home=home, run_id=run_id, pipeline="training"))
    with dsl.ExitHandler(end, name="record-how-it-ended"):
        train_challenger(config, home, run_id)
