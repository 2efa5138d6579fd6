"""Before a pod of a training cluster ends: the run writes its checkpoint.

KubeRay asks a run to stop and deletes the pods right after, and `ray start` ends at its first
SIGTERM. So a head's preStop hook stops the jobs and waits until they are over, and a worker's hook
waits for the head's jobs: a learner rank has to be there while its checkpoint is written.
"""

from __future__ import annotations

import argparse
import logging
import os
import time

from ray.job_submission import JobStatus, JobSubmissionClient

PORT = 8265
POLL_S = 1.0
log = logging.getLogger(__name__)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--stop", action="store_true", help="stop the jobs, too")
    parser.add_argument("--within", type=float, required=True, help="seconds to wait at most")
    given = parser.parse_args(arguments)
    host = os.environ.get("FQ_RAY_IP", "127.0.0.1")  # KubeRay's name of the head, in a worker
    try:
        leave(f"http://{host}:{PORT}", stop=given.stop, within_s=given.within)
    except (ConnectionError, RuntimeError) as error:  # no dashboard: no job to wait for
        log.warning("nothing to wait for: %s", error)


def leave(address: str, *, stop: bool, within_s: float) -> bool:
    """Wait until no job of the cluster at `address` runs; whether that came within `within_s`."""
    client = JobSubmissionClient(address)
    deadline = time.monotonic() + within_s
    for job in _going_on(client) if stop else []:
        client.stop_job(job)
    while _going_on(client):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _going_on(client: JobSubmissionClient) -> list[str]:
    """Submission ids of the jobs that have not ended; a driver of none cannot be stopped."""
    going_on = (JobStatus.PENDING, JobStatus.RUNNING)
    jobs = client.list_jobs()
    return [j.submission_id for j in jobs if j.submission_id and j.status in going_on]


if __name__ == "__main__":
    main()
