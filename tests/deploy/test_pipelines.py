"""Tests the steps of docs/how-to/pipelines: checks the files against the schemas of the pipeline
systems, and runs the steps with a real RabbitMQ and Redis, an orchestrator, a worker, and the
emulator."""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import unittest
from pathlib import Path

import pika
import yaml

from common import HERE, ROOT, TWINCAST

PIPELINES = ROOT / "docs/how-to/pipelines"
FILES = {
    "azure-devops": "azure-pipelines",
    "github-actions": "github-workflows",
    "gitlab-ci": "gitlab-ci",
}
PARSED = {name: yaml.safe_load((PIPELINES / f"{name}.yml").read_text()) for name in FILES}

FLEET = """
seed: 1
groups:
  - { name: fridges, count: 200, id: "fridge-{index:03}", tags: { type: fridge, region: north } }
  - { name: freezers, count: 50, id: "freezer-{index:03}", tags: { type: freezer, region: north } }
  - name: broken
    count: 1
    id: "broken-{index:03}"
    tags: { type: freezer, region: south }
    behaviour: { disabled: 100% }
  - name: gone
    count: 50
    id: "gone-{index:03}"
    tags: { type: kettle, region: south }
    behaviour: { disabled: 100% }
"""


def step(name):
    """Returns the script of the rollout step, in the form run by the pipeline system."""
    pipeline = PARSED[name]
    if name == "gitlab-ci":
        return "set -eo pipefail\n" + "\n".join(pipeline["rollout"]["script"])
    if name == "azure-devops":
        steps = pipeline["jobs"][0]["steps"]
    else:
        steps = pipeline["jobs"]["rollout"]["steps"]
    [found] = [
        one for one in steps if "Tell the fleet" in (one.get("displayName"), one.get("name"))
    ]
    return found.get("bash") or found["run"]


class Files(unittest.TestCase):
    def test_match_the_schemas_of_the_pipeline_systems(self):
        for name, schema in FILES.items():
            transform = [] if schema == "github-workflows" else ["--data-transform", schema]
            checked = subprocess.run(
                [
                    sys.executable,
                    "-m",
                    "check_jsonschema",
                    "--builtin-schema",
                    f"vendor.{schema}",
                    "--regex-variant",
                    "nonunicode",
                ]
                + [*transform, PIPELINES / f"{name}.yml"],
                capture_output=True,
                text=True,
            )
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_install_the_tested_client(self):
        for name in FILES:
            pins = re.findall(r"pip install (.+)", (PIPELINES / f"{name}.yml").read_text())
            self.assertEqual(pins, ["--require-hashes -r rollout/requirements.txt"], name)
        requirements = (PIPELINES / "requirements.txt").read_text()
        self.assertRegex(
            requirements, rf"^pika=={re.escape(pika.__version__)} \\\n    --hash=sha256:"
        )
        self.assertIn(f"pika=={pika.__version__}", (HERE / "requirements.in").read_text())

    def test_keep_the_url_secret_and_the_tag_out_of_the_script(self):
        for name in FILES:
            text = (PIPELINES / f"{name}.yml").read_text()
            self.assertRegex(text, r"VERSION: \$")
            self.assertRegex(text, r"TWINCAST__AMQP__URL: \$.*TWINCAST_AMQP_URL")
            # The text of a tag must never be part of the script.
            self.assertNotRegex(step(name), r"\$\(|\$\{\{")

    def test_actions_are_pinned_by_their_hashes(self):
        uses = re.findall(r"uses: (\S+)", (PIPELINES / "github-actions.yml").read_text())
        for action in uses:
            self.assertRegex(action, r"@[0-9a-f]{40}$")

    def test_the_readme_links_all_files(self):
        readme = (PIPELINES / "README.md").read_text()
        for path in PIPELINES.iterdir():
            self.assertTrue(path.name == "README.md" or f"]({path.name})" in readme, path.name)


class Steps(unittest.TestCase):
    """Runs the steps."""

    @classmethod
    def setUpClass(cls):
        cls.folder = Path(tempfile.mkdtemp(prefix="twincast-pipelines-"))
        services = ROOT / "scripts/services"
        # Ends the services after any end of this process.
        guard = subprocess.Popen(
            [services, "guard", cls.folder / "services"], stdin=subprocess.PIPE
        )
        cls.addClassCleanup(shutil.rmtree, cls.folder, ignore_errors=True)
        cls.addClassCleanup(guard.wait)
        cls.addClassCleanup(guard.stdin.close)

        def start(kind):
            command = [services, f"{kind}-start", cls.folder / "services" / kind]
            return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)

        def port(starting):
            out, _ = starting.communicate(timeout=200)
            assert starting.returncode == 0, out
            return re.search(r"^port=(\d+)$", out, re.M)[1]

        rabbitmq, redis = start("rabbitmq"), start("redis")
        cls.url = f"amqp://guest:guest@127.0.0.1:{port(rabbitmq)}"
        env = os.environ | {
            "TWINCAST__AMQP__URL": cls.url,
            "TWINCAST__REDIS__URL": f"redis://127.0.0.1:{port(redis)}",
        }

        def run(*args):
            with open(cls.folder / f"{args[-1]}.log", "wb") as log:
                # `timeout` ends the process if the test cannot.
                process = subprocess.Popen(
                    ["timeout", "3600", TWINCAST, *args],
                    env=env,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    cwd=cls.folder,
                )
            cls.addClassCleanup(process.wait)
            cls.addClassCleanup(process.terminate)
            cls.addClassCleanup(process.stdout.close)
            return process

        (cls.folder / "fleet.yaml").write_text(FLEET)
        hub = run("--json", "hub", "--amqp-port=0", "--tier=S3", "--fleet=fleet.yaml", "--out=hub")
        # The hub prints this line when ready.
        answer = json.loads(hub.stdout.readline())
        assert "config_file" in answer, answer
        config = answer["config_file"]
        orchestrator = run("--config", config, "orchestrator")
        run("--config", config, "worker")
        cls.await_queue(orchestrator)

    @classmethod
    def await_queue(cls, orchestrator):
        """Waits until the queue of commands exists."""
        until = time.monotonic() + 180
        connection = pika.BlockingConnection(pika.URLParameters(cls.url))
        while True:
            try:
                connection.channel().queue_declare("twincast.commands", passive=True)
                return connection.close()
            except pika.exceptions.ChannelClosedByBroker:
                log = (cls.folder / "orchestrator.log").read_text()
                assert orchestrator.poll() is None and time.monotonic() < until, log
                connection.sleep(0.1)

    def publish(self, *args, url=None):
        """Runs the example with `--wait`. Returns the exit code."""
        ran = subprocess.run(
            [
                sys.executable,
                ROOT / "examples/publish.py",
                ROOT / "examples/start.json",
                "--wait",
                "--timeout=3",
                *args,
            ],
            env={"PATH": os.environ["PATH"], "TWINCAST__AMQP__URL": url or self.url},
            capture_output=True,
            text=True,
            timeout=60,
        )
        self.output = ran.stdout + ran.stderr
        return ran.returncode

    def test_end_without_a_reachable_engine(self):
        wrong = {
            "password": self.url.replace("guest:guest", "guest:wrong"),
            "virtual host": f"{self.url}/nowhere",
            "port": "amqp://guest:guest@127.0.0.1:1",
        }
        for what, url in wrong.items():
            with self.subTest(what):
                self.assertEqual(self.publish(url=url), 9, self.output)
        with self.subTest("no engine"):
            self.assertEqual(self.publish("--prefix=nobody"), 9, self.output)

    def test_a_tag_runs_no_command(self):
        for name in FILES:
            for tag in ["v/;1eid>/path;#", "v1$(id>path)", "v1`id>path`", 'v1"; id>path; "']:
                with self.subTest(f"{name} {tag}"):
                    self.assertEqual(self.run_step(step(name), tag), 3, self.output)
                    self.assertNotIn("uid=", self.output)

    def run_step(self, script, version="1", change=lambda spec: None):
        """Runs a step in a repository laid out as in the README. Returns the exit code."""
        with tempfile.TemporaryDirectory() as repository:
            rollout = Path(repository) / "rollout"
            rollout.mkdir()
            shutil.copy(ROOT / "examples/publish.py", rollout)
            command = json.loads((PIPELINES / "start.json").read_text())
            change(command["spec"])
            (rollout / "start.json").write_text(json.dumps(command))
            env = {
                "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
                "VERSION": version,
                "TWINCAST__AMQP__URL": self.url,
            }
            ran = subprocess.run(
                ["bash", "-c", script],
                env=env,
                cwd=repository,
                capture_output=True,
                text=True,
                timeout=120,
            )
            self.output = ran.stdout + ran.stderr
            return ran.returncode

    def ask(self, rollout):
        """Runs the README's command for waiting for the end of a rollout of any origin."""
        readme = (PIPELINES / "README.md").read_text()
        [command] = re.findall(r"^(echo .*\"status\".* --wait)$", readme, re.M)
        return self.run_step(command.replace("firmware-v1.4.2", rollout))

    def test_pass_when_every_device_was_sent_the_message(self):
        for name in FILES:
            with self.subTest(name):
                self.assertEqual(self.run_step(step(name), f"v1-{name}"), 0, self.output)
                # A second run finds the same rollout.
                self.assertEqual(self.run_step(step(name), f"v1-{name}"), 0, self.output)
                self.assertIn('"changed": false', self.output)
                self.assertEqual(self.ask(f"firmware-v1-{name}"), 0, self.output)

    def test_fail_when_some_sends_fail(self):
        def change(spec):
            spec["target"]["tags"]["type"] = "freezer"
            del spec["stages"]

        for name in FILES:
            self.assertEqual(self.run_step(step(name), f"v2-{name}", change), 4, self.output)
        self.assertEqual(
            self.run_step(step(name) + " || [ $? -eq 4 ]", f"v2-{name}", change), 0, self.output
        )

    def test_fail_when_a_gate_aborts(self):
        for name in FILES:
            code = self.run_step(
                step(name), f"v3-{name}", lambda spec: spec["target"]["tags"].update(type="kettle")
            )
            self.assertEqual(code, 8, self.output)
            self.assertEqual(self.ask(f"firmware-v3-{name}"), 8, self.output)

    def test_fail_when_the_command_is_refused(self):
        for name in FILES:
            self.assertEqual(self.run_step(step(name), "has spaces"), 3, self.output)
            self.assertIn("invalid_spec", self.output)

    def test_fail_when_the_target_is_empty(self):
        code = self.run_step(
            step("gitlab-ci"), "v4", lambda spec: spec["target"]["tags"].update(type="toaster")
        )
        self.assertEqual(code, 3, self.output)


if __name__ == "__main__":
    unittest.main()
