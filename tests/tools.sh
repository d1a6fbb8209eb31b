#!/bin/sh
# Install the programs that tests run beside Python: as root on Debian; elsewhere report what is missing.
set -u
missing=""
command -v curl >/dev/null || missing="$missing curl"
command -v gcc >/dev/null || missing="$missing gcc libc6-dev"
# Headers, for deploy/compile.py, of the Python that `make` uses by default.
case "$(readlink -f "$(command -v python3)")" in
/usr/bin/*) ls /usr/include/python3.*/Python.h >/dev/null 2>&1 || missing="$missing python3-dev" ;;
esac
command -v openssl >/dev/null || missing="$missing openssl"
command -v nginx >/dev/null || [ -x /usr/sbin/nginx ] || missing="$missing nginx-light"
command -v haproxy >/dev/null || [ -x /usr/sbin/haproxy ] || missing="$missing haproxy"
command -v promtool >/dev/null || missing="$missing prometheus"
command -v clamd >/dev/null || [ -x /usr/sbin/clamd ] || missing="$missing clamav-daemon"
command -v tmux >/dev/null || missing="$missing tmux"
command -v chromium >/dev/null || missing="$missing chromium"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "tools: not installed (needs root and apt):$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
# Only the programs are needed: keep apt from starting their services.
policy=/usr/sbin/policy-rc.d
[ -e $policy ] || { printf '#!/bin/sh\nexit 101\n' > $policy && chmod +x $policy && trap 'rm -f $policy' EXIT; }
{ apt-get update && apt-get install -y --no-install-recommends $missing; } >/tmp/gateway-tools.log 2>&1 ||
    echo "tools: apt failed, see /tmp/gateway-tools.log:$missing" >&2
exit 0
