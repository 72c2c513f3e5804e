"""The files for operation say what the command line knows."""

from __future__ import annotations

import re
from pathlib import Path

import yaml
from small import here

DEPLOY = Path(__file__).parents[1] / "deploy"


def test_options_that_are_used_are_there():
    known = set(re.findall(r"--[\w-]+", here("serve", "--help").stdout))
    for name, pattern in (("asymrec.service", r"^ExecStart=\S+ serve (.*)$"), ("Dockerfile", r'^CMD \["serve", (.*)\]$')):
        (command,) = re.findall(pattern, (DEPLOY / name).read_text(), re.M)
        used = set(re.findall(r"--[\w-]+", command))
        assert used and used <= known, name


def test_the_services_fit_together():
    compose = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services, known = compose["services"], set(re.findall(r"^(\w+):", (DEPLOY / "prometheus.yaml").read_text(), re.M))
    assert known == {"scrape_configs"}
    (job,) = yaml.safe_load((DEPLOY / "prometheus.yaml").read_text())["scrape_configs"]
    targets = [target.split(":") for target in job["static_configs"][0]["targets"]]
    for name, port in targets:
        assert services[name]["ports"][0].endswith(f":{port}")
        assert services[name]["environment"]["ASYMREC_STORE"].startswith("postgresql://")
    assert "EXPOSE 8000" in (DEPLOY / "Dockerfile").read_text()
