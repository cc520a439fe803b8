"""As much of Kubernetes' API as a pod of ours asks for, by its service account."""

from __future__ import annotations

import http.client
import json
import os
import ssl
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from app.errors import StorageError, UsageError

ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
Object = dict[str, Any]


class Api:
    """The API server.

    Args:
        url: such as ``https://10.96.0.1:443``.
        account: folder with the ``token``, which is read anew for every request since it expires, and ``ca.crt``.
        namespace: the objects' namespace; by default the one in ``account``.
    """

    def __init__(self, url: str, account: Path = ACCOUNT, namespace: str | None = None) -> None:
        self.url, self._account = url, account
        try:
            self.namespace = namespace or (account / "namespace").read_text().strip()
            authority = account / "ca.crt"
            self._tls = ssl.create_default_context(cafile=str(authority)) if url.startswith("https") else None
        except OSError as error:
            raise UsageError(f"{account}: no service account is mounted here ({error.strerror})") from error

    @classmethod
    def inside(cls) -> Api:
        """Return the API server of the cluster that this process runs in.

        Raises:
            UsageError: it runs in none.
        """
        host, port = os.environ.get("KUBERNETES_SERVICE_HOST"), os.environ.get("KUBERNETES_SERVICE_PORT")
        if not host:
            raise UsageError("watch: runs in a pod of a cluster (k8s/base/watch.yaml), and this is none")
        return cls(f"https://{f'[{host}]' if ':' in host else host}:{port}")

    def pods(self, labels: str, phase: str) -> list[Object]:
        """Return the pods with these labels (a selector) in a phase."""
        query = {"labelSelector": labels, "fieldSelector": f"status.phase={phase}"}
        pods: list[Object] = self._ask("GET", self._path("api/v1", "pods"), query)["items"] or []
        return pods

    def workflows(self, labels: str) -> list[Object]:
        """Return the workflows with these labels, their metadata alone: a status can take 1 MB."""
        found: list[Object] = self._ask(
            "GET",
            self._path("apis/argoproj.io/v1alpha1", "workflows"),
            {"labelSelector": labels},
            accept="application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
        )["items"]
        return found or []  # an empty list is null there

    def workflow(self, name: str) -> Object:
        """Return a workflow of Argo's."""
        return self._ask("GET", self._path("apis/argoproj.io/v1alpha1", "workflows", name))

    def patch_workflow(self, name: str, change: Object) -> None:
        """Merge a change into a workflow."""
        self._ask("PATCH", self._path("apis/argoproj.io/v1alpha1", "workflows", name), body=change)

    def _path(self, group: str, kind: str, name: str = "") -> str:
        return f"/{group}/namespaces/{self.namespace}/{kind}{f'/{name}' if name else ''}"

    def _ask(
        self,
        verb: str,
        path: str,
        query: dict[str, str] | None = None,
        body: Object | None = None,
        accept: str = "application/json",
    ) -> Object:
        """Ask.

        Raises:
            UsageError: refused: no permission, or no such object.
            StorageError: no answer; another try may have one.
        """
        url = f"{self.url}{path}{f'?{urllib.parse.urlencode(query)}' if query else ''}"
        headers = {"Accept": accept, "Content-Type": "application/merge-patch+json"}
        headers["Authorization"] = f"Bearer {(self._account / 'token').read_text().strip()}"
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(url, data, headers, method=verb)
        try:
            with urllib.request.urlopen(request, timeout=30, context=self._tls) as answer:
                found: Object = json.load(answer)
                return found
        except urllib.error.HTTPError as error:
            kind = UsageError if error.code in (401, 403, 404, 422) else StorageError
            raise kind(f"{verb} {path}: the API server says {error.code} {error.reason}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise StorageError(f"{self.url}: the API server does not answer ({error})") from error
