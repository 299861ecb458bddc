# shellcheck shell=bash
# A throw-away Postgres for scripts. Source it after common.sh.

# start_postgres DIR: a server of its own in DIR (created), on a free port of 127.0.0.1. Sets PG_URL
# and PG_PID. Stop it with stop_postgres.
start_postgres() {
  local dir=$1 bin as=()
  bin=$(dirname "$(realpath "$(command -v initdb || find /usr/lib/postgresql -name initdb -path '*/bin/*' 2>/dev/null | sort -V | tail -1)")")
  [[ -x $bin/initdb ]] || die "no PostgreSQL server programs found: apt-get install postgresql"
  mkdir -p "$dir"
  if [[ $(id -u) -eq 0 ]]; then # the server refuses to run as root
    chown postgres: "$dir"
    as=(setpriv --reuid=postgres --regid=postgres --init-groups)
  fi
  local port
  for port in $(shuf -i 20000-60000 -n 20); do
    [[ -d $dir/data ]] || "${as[@]}" "$bin/initdb" -D "$dir/data" -U postgres --auth=trust --encoding=UTF8 --locale=C.UTF-8 --no-sync >/dev/null
    : >"$dir/log" # an earlier server's line must not count
    "${as[@]}" "$bin/postgres" -D "$dir/data" -k "$dir" -h 127.0.0.1 -p "$port" >"$dir/log" 2>&1 &
    PG_PID=$!
    local i
    for i in $(seq 100); do
      kill -0 "$PG_PID" 2>/dev/null || break # the port was taken
      if grep -q 'ready to accept connections' "$dir/log"; then
        PG_URL="postgres://postgres@127.0.0.1:$port/postgres?sslmode=disable"
        return
      fi
      sleep 0.1
    done
    stop_postgres
  done
  die "Postgres does not start: $(tail -3 "$dir/log")"
}

stop_postgres() {
  [[ -n ${PG_PID:-} ]] || return 0
  kill -INT "$PG_PID" 2>/dev/null || true # fast shutdown
  wait "$PG_PID" 2>/dev/null || true
  PG_PID=''
}
