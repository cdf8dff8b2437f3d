"""Record end: the exit handler of both pipelines; runs whether they succeeded or not."""

from kfp.dsl import PipelineTaskFinalStatus

from omnifeed.components.step import step


@step
def record_end(home: str, run_id: str, pipeline: str, status: PipelineTaskFinalStatus) -> None:
    """Write `runs/<run>/steps/end_of_<pipeline>.json`."""
    from omnifeed.components.record import recording

    with recording(home, run_id, f"end_of_{pipeline}") as record:
        record.info = {"state": status.state, "error": status.error_message or ""}
