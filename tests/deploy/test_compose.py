"""Tests the image and the compose file against their schemas and against each other. The containers
are not started, because no container engine is available; other tests run the processes."""

import json
import re
import subprocess
import sys
import tomllib
import unittest

import yaml

from common import ROOT, TWINCAST

DEPLOY = ROOT / "deploy"
COMPOSE = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
SERVICES = COMPOSE["services"]
OURS = {
    name: service for name, service in SERVICES.items() if service["image"] == "twincast:compose"
}
PROCESSES = ["orchestrator", "worker"]
CONFIG = tomllib.loads((DEPLOY / "compose/twincast.toml").read_text())


def mounts(service):
    """Returns the mounted sources by path: {path: source}."""
    return {volume.split(":")[1]: volume.split(":")[0] for volume in service.get("volumes", [])}


def option(service, name):
    """Returns the value of a command's --name=value."""
    [value] = [
        part.removeprefix(f"--{name}=")
        for part in service["command"]
        if part.startswith(f"--{name}=")
    ]
    return value


class Compose(unittest.TestCase):
    def test_matches_the_compose_schema(self):
        check = [
            "check-jsonschema",
            "--builtin-schema",
            "vendor.compose-spec",
            DEPLOY / "compose.yaml",
        ]
        checked = subprocess.run(
            [sys.executable, "-m", check[0].replace("-", "_"), *check[1:]],
            capture_output=True,
            text=True,
        )
        self.assertEqual(checked.returncode, 0, checked.stdout)

    def test_has_all_parts(self):
        self.assertEqual(set(OURS), {"orchestrator", "worker", "hub", "cli"})
        self.assertEqual(set(SERVICES) - set(OURS), {"rabbitmq", "redis", "prometheus", "grafana"})
        self.assertEqual([SERVICES[name]["deploy"]["replicas"] for name in PROCESSES], [2, 3])
        self.assertEqual(SERVICES["cli"]["profiles"], ["tools"])

    def test_versions_are_pinned(self):
        for name in set(SERVICES) - set(OURS):
            self.assertRegex(
                SERVICES[name]["image"], r"^docker\.io/[a-z/]+:v?\d+\.\d+\.\d+(-management)?$"
            )

    def test_own_services_have_no_privileges(self):
        for name, service in OURS.items():
            with self.subTest(name):
                self.assertIs(service["read_only"], True)
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertEqual(service["security_opt"], ["no-new-privileges:true"])
                self.assertNotIn("user", service)
                self.assertNotIn("privileged", service)

    def test_processes_are_given_time_to_end(self):
        source = (ROOT / "worker/src/config.rs").read_text()
        [drain] = re.findall(r"drain: Duration::from_secs\((\d+)\)", source)
        for name in PROCESSES:
            grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
            self.assertGreaterEqual(grace, int(drain) + 5)

    def test_ports_are_published_for_this_machine_only(self):
        published = [port for service in SERVICES.values() for port in service.get("ports", [])]
        self.assertEqual(
            sorted(port.split(":")[1] for port in published), ["15672", "3000", "5672", "9090"]
        )
        for port in published:
            self.assertTrue(port.startswith("127.0.0.1:"), port)

    def test_the_only_password_is_the_demo_password(self):
        text = (DEPLOY / "compose.yaml").read_text()
        self.assertEqual(
            len(re.findall(r"DEMO_PASSWORD", text)),
            text.count("${DEMO_PASSWORD:-for-trying-it-out}"),
        )
        for name, service in SERVICES.items():
            for key, value in service.get("environment", {}).items():
                if re.search("PASS|AUTH$|URL", key):
                    self.assertIn("${DEMO_PASSWORD:-for-trying-it-out}", value, f"{name}: {key}")

    def test_awaited_services_have_health_checks(self):
        for name, service in SERVICES.items():
            waits = service.get("depends_on", {})
            for other in waits:
                self.assertIn(other, SERVICES, name)
                if isinstance(waits, dict):
                    self.assertEqual(waits[other]["condition"], "service_healthy")
                    self.assertIn("test", SERVICES[other]["healthcheck"])
        for name in PROCESSES:
            self.assertEqual(set(SERVICES[name]["depends_on"]), {"rabbitmq", "redis", "hub"})

    def test_mounted_files_exist(self):
        for name, service in SERVICES.items():
            for path, source in mounts(service).items():
                if source.startswith("."):
                    self.assertTrue((DEPLOY / source).exists(), f"{name}: {source}")
                    self.assertIn(f"{source}:{path}:ro", service["volumes"])
                else:
                    self.assertIn(source, COMPOSE["volumes"])

    def test_the_program_takes_the_configuration_and_the_commands(self):
        for name in [*PROCESSES, "cli"]:
            service = SERVICES[name]
            self.assertEqual(
                mounts(service)[service["environment"]["TWINCAST_CONFIG"]],
                "./compose/twincast.toml",
            )
            variables = {key: value for key, value in service["environment"].items() if "__" in key}
            shown = subprocess.run(
                [TWINCAST, "--config", DEPLOY / "compose/twincast.toml", "--print-config"],
                env=variables,
                capture_output=True,
                text=True,
            )
            self.assertEqual(shown.returncode, 0, shown.stderr)
        for name in [*PROCESSES, "hub"]:
            # The program checks the command's own options before showing the help.
            helped = subprocess.run(
                [TWINCAST, *SERVICES[name]["command"], "--help"], capture_output=True, text=True
            )
            self.assertEqual(helped.returncode, 0, helped.stderr)

    def test_processes_find_the_hub(self):
        hub, config = SERVICES["hub"], CONFIG["hubs"]["emulator"]
        self.assertEqual(option(hub, "host-name"), "hub")
        self.assertEqual(option(hub, "https-port"), str(config["https_port"]))
        self.assertEqual((option(hub, "tier"), 1), (config["tier"], config["units"]))
        self.assertEqual(mounts(hub)[option(hub, "out")], "hub")
        for name in [*PROCESSES, "cli"]:
            folder = next(
                path for path, source in mounts(SERVICES[name]).items() if source == "hub"
            )
            self.assertEqual(config["connection_string_file"], f"{folder}/connection-string")
            self.assertEqual(config["ca_file"], f"{folder}/ca.pem")

    def test_health_checks_use_the_configured_port(self):
        port = CONFIG["http"]["listen"].rsplit(":", 1)[1]
        for name in PROCESSES:
            script = SERVICES[name]["healthcheck"]["test"][-1]
            self.assertIn(f"/dev/tcp/127.0.0.1/{port}", script)
            self.assertIn("GET /readyz", script)
            parsed = subprocess.run(["bash", "-n", "-c", script], capture_output=True, text=True)
            self.assertEqual(parsed.returncode, 0, parsed.stderr)

    def test_prometheus_finds_all_processes(self):
        prometheus = SERVICES["prometheus"]
        file = option({"command": prometheus["command"]}, "config.file")
        folder, name = file.rsplit("/", 1)
        path = DEPLOY / mounts(prometheus)[folder] / name
        checked = subprocess.run(
            ["promtool", "check", "config", path], capture_output=True, text=True
        )
        self.assertEqual(checked.returncode, 0, checked.stderr)
        self.assertIn("rules found", checked.stdout)
        jobs = yaml.safe_load(path.read_text())["scrape_configs"]
        port = int(CONFIG["http"]["listen"].rsplit(":", 1)[1])
        found = {
            name: config["port"]
            for job in jobs
            for config in job.get("dns_sd_configs", [])
            for name in config["names"]
        }
        self.assertEqual(found, {name: port for name in PROCESSES})

    def test_grafana_finds_prometheus_and_the_dashboards(self):
        at = mounts(SERVICES["grafana"])
        provisioned = "/etc/grafana/provisioning"
        [file] = (DEPLOY / at[f"{provisioned}/datasources"]).glob("*.yml")
        [source] = yaml.safe_load(file.read_text())["datasources"]
        self.assertEqual(
            (source["type"], source["url"], source["isDefault"]),
            ("prometheus", "http://prometheus:9090", True),
        )
        [file] = (DEPLOY / at[f"{provisioned}/dashboards"]).glob("*.yml")
        [provider] = yaml.safe_load(file.read_text())["providers"]
        dashboards = DEPLOY / at[provider["options"]["path"]]
        uids = [json.loads(path.read_text())["uid"] for path in dashboards.glob("*.json")]
        self.assertEqual(sorted(uids), ["twincast-engine", "twincast-rollouts"])
        home = SERVICES["grafana"]["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
        self.assertTrue(
            (dashboards / home.removeprefix(provider["options"]["path"] + "/")).exists()
        )


class Image(unittest.TestCase):
    DOCKERFILE = (DEPLOY / "Dockerfile").read_text()
    CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text())

    def test_is_built_like_the_shipped_program(self):
        self.assertIn("dist", self.CARGO["profile"])
        self.assertIn("cargo build --profile dist --locked --bin twincast", self.DOCKERFILE)
        self.assertIn("target/dist/twincast", self.DOCKERFILE)
        bases = re.findall(r"^FROM (\S+)", self.DOCKERFILE, re.M)
        rust = self.CARGO["workspace"]["package"]["rust-version"]
        self.assertEqual(
            bases,
            [
                f"docker.io/library/rust:{rust}-slim-bookworm",
                "docker.io/library/debian:bookworm-slim",
            ],
        )

    def test_is_not_root(self):
        last = self.DOCKERFILE.rsplit("\nFROM ", 1)[1]
        [user] = re.findall(r"^USER (\S+)$", last, re.M)
        ids = yaml.safe_load((ROOT / "helm/twincast/values.yaml").read_text())["security"]
        self.assertEqual(user, f"{ids['runAsUser']}:{ids['runAsGroup']}")
        # The emulator's volume inherits the owner of this folder.
        [folder] = re.findall(r"^WORKDIR (\S+)$", last, re.M)
        self.assertIn(f"install -d -o {ids['runAsUser']} -g {ids['runAsGroup']} {folder}", last)
        self.assertEqual(folder, option(SERVICES["hub"], "out"))

    def test_the_build_context_has_all_read_files(self):
        allowed = [
            line[1:]
            for line in (ROOT / ".dockerignore").read_text().splitlines()
            if line.startswith("!")
        ]
        is_sent = lambda path: any(
            path == entry or path.startswith(f"{entry}/") for entry in allowed
        )
        for entry in allowed:
            self.assertTrue((ROOT / entry).exists(), entry)
        members = [member for member in self.CARGO["workspace"]["members"] if member != "."]
        benches = [f"benches/{bench['name']}.rs" for bench in self.CARGO["bench"]]
        for path in ["Cargo.toml", "Cargo.lock", "src/main.rs", *members, *benches]:
            self.assertTrue(is_sent(path), path)
        included = 0
        for entry in allowed:
            for source in (ROOT / entry).rglob("*.rs"):
                if {"target", "tests"} & set(source.relative_to(ROOT).parts):
                    continue
                for name in re.findall(
                    r"include(?:_str|_bytes)?!\(\s*\"([^\"]+)\"", source.read_text()
                ):
                    path = (source.parent / name).resolve().relative_to(ROOT)
                    self.assertTrue(is_sent(str(path)), f"{source} reads {path}")
                    included += 1
        self.assertGreater(included, 10)


if __name__ == "__main__":
    unittest.main()
