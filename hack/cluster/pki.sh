# shellcheck shell=bash
# Keys, certificates and kubeconfigs of the cluster, made once. Each file appears whole or not at all, so a run that was killed
# is simply continued.

readonly certificate_days=3650

private_key() { # private_key NAME: NAME.key
  [ -s "$pki/$1.key" ] && return
  openssl ecparam -name prime256v1 -genkey -noout -out "$pki/$1.key.new" 2>/dev/null
  mv "$pki/$1.key.new" "$pki/$1.key"
}

certificate_authority() { # certificate_authority NAME COMMON_NAME
  [ -s "$pki/$1.crt" ] && return
  private_key "$1"
  openssl req -x509 -new -key "$pki/$1.key" -subj "/CN=$2" -days $certificate_days \
    -addext keyUsage=critical,digitalSignature,keyCertSign -out "$pki/$1.crt.new"
  mv "$pki/$1.crt.new" "$pki/$1.crt"
}

certificate() { # certificate NAME SUBJECT USAGE [SUBJECT_ALTERNATIVE_NAMES]
  [ -s "$pki/$1.crt" ] && return
  private_key "$1"
  {
    echo keyUsage=critical,digitalSignature
    echo "extendedKeyUsage=$3"
    [ -z "${4:-}" ] || echo "subjectAltName=$4"
  } >"$pki/$1.extensions"
  openssl req -new -key "$pki/$1.key" -subj "$2" |
    openssl x509 -req -CA "$pki/ca.crt" -CAkey "$pki/ca.key" -CAcreateserial -days $certificate_days \
      -extfile "$pki/$1.extensions" -out "$pki/$1.crt.new" 2>/dev/null
  rm "$pki/$1.extensions"
  mv "$pki/$1.crt.new" "$pki/$1.crt"
}

write_kubeconfig() { # write_kubeconfig NAME SERVER DIRECTORY FILE: for the owner of certificate NAME, with the PKI in DIRECTORY
  cat >"$4.new" <<CONFIG
apiVersion: v1
kind: Config
clusters: [{name: $cluster, cluster: {server: "$2", certificate-authority: $3/ca.crt}}]
users: [{name: $1, user: {client-certificate: $3/$1.crt, client-key: $3/$1.key}}]
contexts: [{name: $cluster, context: {cluster: $cluster, user: $1}}]
current-context: $cluster
CONFIG
  chmod 600 "$4.new"
  mv "$4.new" "$4"
}

make_pki() {
  mkdir -p "$pki"
  chmod 700 "$pki"
  certificate_authority ca "tandem-$cluster"
  local name names=IP:127.0.0.1,IP:$control_plane_ip,IP:$service_ip,DNS:localhost
  for name in kubernetes kubernetes.default kubernetes.default.svc kubernetes.default.svc.cluster.local; do
    names+=,DNS:$name
  done
  certificate apiserver /CN=kube-apiserver serverAuth "$names"
  certificate kubelet-client /O=system:masters/CN=kube-apiserver clientAuth
  certificate admin /O=system:masters/CN=admin clientAuth
  for name in kube-controller-manager kube-scheduler kube-proxy; do certificate "$name" "/CN=system:$name" clientAuth; done
  certificate multus /CN=multus clientAuth
  for name in kube-controller-manager kube-scheduler; do
    write_kubeconfig "$name" "https://$control_plane_ip:6443" "$pki" "$pki/$name.kubeconfig"
  done
  for name in "$native_node" "$kvm_node"; do
    certificate "$name" "/O=system:nodes/CN=system:node:$name" clientAuth,serverAuth "DNS:$name,IP:$(node_ip "$name")"
  done
  private_key service-accounts
  [ -s "$pki/service-accounts.pub" ] || openssl ec -in "$pki/service-accounts.key" -pubout -out "$pki/service-accounts.pub" 2>/dev/null
  # Two SSH keys: the host's to come into the emulated node, and the node's own.
  for name in ssh-admin ssh-node; do
    [ -s "$pki/$name.pub" ] || {
      rm -f "$pki/$name"
      ssh-keygen -q -t ed25519 -N '' -C "tandem-$cluster" -f "$pki/$name"
    }
  done
  echo "$(node_ip "$kvm_node") $(cut -d' ' -f1,2 "$pki/ssh-node.pub")" >"$pki/ssh-known-hosts"
}
