#!/usr/bin/env bash
# Measures one PostgreSQL with an index of many rows, beside the same rows in hash partitions.
# Usage: scripts/index-scale.sh   (make index-scale)
#   ROWS="1000000 5000000 20000000"  the sizes at which it measures, in growing order
#   PARTITIONS="0 16"                the tables, one after another; 0 = one table without partitions
#   BULK=1                           rows are loaded without indexes, which are built then as full as
#                                    random writes leave them (FILLFACTOR=70). For sizes at which rows
#                                    written one after another take hours. As many rows are loaded as
#                                    the disk has room for; the table names the number.
#   CHURN=10                         at the end one row in so many is deleted and written again
#   SECONDS_EACH=10                  time for each of the short calls
#   KEEP_FREE_GB=25                  it stops rather than leave less room on the disk
#   SHARED_BUFFERS=1GB  DIR=...      the server's memory, and a directory for its files
#   INDEX_URL=postgres://...         a server that runs already, instead of one of its own: the
#                                    script makes and drops the table index_scale there
# The rows are made inside the database, in the random order of their keys, with all indexes in
# place (but for BULK), as nodes write them: 256 blocks of 256 KiB in a blob. The calls are the statements of the
# engine, sent by pgbench over the Unix socket. It prints a table in Markdown.
source "$(dirname "$0")/common.sh"
source "$ROOT/scripts/postgres.sh"

rows=${ROWS:-1000000 5000000 20000000}
partitions=${PARTITIONS:-0 16}
each=${SECONDS_EACH:-10}
keep_free=${KEEP_FREE_GB:-25}
bulk=${BULK:-}
churned_part=${CHURN:-10}
# What a row takes while the table grows, log of writes included (bytes).
row_bytes=500
# With BULK: what a row takes in the table, and while its indexes are built (sorting included).
heap_bytes=200
build_bytes=210
table=index_scale
for program in psql pgbench; do
  command -v "$program" >/dev/null || die "$program is missing: apt-get install postgresql-client postgresql-contrib"
done

dir=$(mktemp -d "${DIR:-${TMPDIR:-/tmp}}/index-scale.XXXXXX")
chmod 755 "$dir"
cleanup() {
  stop_postgres
  rm -rf "$dir"
}
trap cleanup EXIT
if [[ -n ${INDEX_URL:-} ]]; then
  url=$INDEX_URL
else
  start_postgres "$dir/pg"
  url="host=$dir/pg port=$(sed -E 's#.*:([0-9]+)/.*#\1#' <<<"$PG_URL") user=postgres dbname=postgres"
  for setting in "shared_buffers='${SHARED_BUFFERS:-1GB}'" "wal_level=minimal" "max_wal_senders=0" "max_wal_size='2GB'" \
    "checkpoint_timeout='10min'" "maintenance_work_mem='${MAINTENANCE_WORK_MEM:-256MB}'" "autovacuum=off" "max_parallel_maintenance_workers=0"; do
    psql -qX "$url" -c "ALTER SYSTEM SET $setting"
  done
  stop_postgres
  start_postgres "$dir/pg"
  url="host=$dir/pg port=$(sed -E 's#.*:([0-9]+)/.*#\1#' <<<"$PG_URL") user=postgres dbname=postgres"
fi

sql() { psql -qXAt -v ON_ERROR_STOP=1 "$url" -c "$1"; }
# timed SQL: runs it, and prints how long it took (seconds).
timed() {
  local from to
  from=$(date +%s.%N)
  sql "$1" >/dev/null
  to=$(date +%s.%N)
  awk "BEGIN { printf \"%.2f\", $to - $from }"
}

has_room() { # has_room BYTES: whether so many more bytes leave enough room.
  local free
  free=$(($(df --output=avail -B1 "$dir" | tail -1)))
  ((free >= $1 + (keep_free << 30)))
}

check_room() { # check_room ROWS: the same for so many more rows.
  has_room $(($1 * row_bytes)) ||
    die "$1 more rows need about $(($1 * row_bytes >> 30)) GiB, and $keep_free GiB are to stay free (KEEP_FREE_GB)"
}

key="'/CIQ' || upper(left(encode(sha256(convert_to(n::text, 'UTF8')), 'hex'), 52) COLLATE \"C\")"
blob="left(translate(encode(sha256(convert_to(blob::text, 'UTF8')), 'base64'), '+/=', '-_'), 43)"
make_table() { # make_table PARTITIONS
  local by='' n
  ((${1} == 0)) || by='PARTITION BY HASH (key)'
  sql "SET client_min_messages = error; DROP TABLE IF EXISTS $table;
    CREATE OR REPLACE FUNCTION index_scale_key(n bigint) RETURNS text LANGUAGE sql IMMUTABLE PARALLEL SAFE AS \$\$ SELECT $key \$\$;
    CREATE TABLE $table (
      key TEXT COLLATE \"C\" NOT NULL, blob_id TEXT NOT NULL, blob_offset BIGINT NOT NULL DEFAULT 0, size BIGINT NOT NULL,
      deletable BOOLEAN NOT NULL DEFAULT FALSE, end_epoch BIGINT NOT NULL DEFAULT 0, expires_at TIMESTAMPTZ,
      created_at TIMESTAMPTZ NOT NULL DEFAULT now(), updated_at TIMESTAMPTZ NOT NULL DEFAULT now()) $by"
  for ((n = 0; n < $1; n++)); do
    sql "CREATE TABLE ${table}_$n PARTITION OF $table FOR VALUES WITH (MODULUS $1, REMAINDER $n)"
  done
  [[ -n $bulk ]] || make_indexes
}

make_indexes() { # in BULK, the random order of the keys leaves the leaves of their index as full as here.
  local full=''
  [[ -z $bulk ]] || full="WITH (fillfactor = ${FILLFACTOR:-70})"
  guarded "ALTER TABLE $table ADD CONSTRAINT ${table}_key PRIMARY KEY (key) $full"
  guarded "CREATE INDEX ${table}_blob ON $table (blob_id)"
}

# guarded SQL: runs it, and breaks it off when too little room is left on the disk.
guarded() {
  local pid
  PGAPPNAME=index-scale-guarded psql -qXAt -v ON_ERROR_STOP=1 "$url" -c "$1" >/dev/null &
  pid=$!
  while kill -0 "$pid" 2>/dev/null; do
    has_room 0 || sql "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'index-scale-guarded'" >/dev/null
    sleep 1
  done
  wait "$pid" || die "broken off, or failed: $1 (KEEP_FREE_GB=$keep_free)"
}

# rows_sql FROM TO: the statement that writes the rows of these numbers, as the engine's upsert does.
rows_sql() {
  printf '%s' "INSERT INTO $table AS t (key, blob_id, blob_offset, size, end_epoch, expires_at)
    SELECT $key, ${blob//blob::/(n / 256)::}, n % 256 * 262144, 262144, 60, now() + interval '1 year'
    FROM generate_series($1::bigint, $2::bigint) AS n
    ON CONFLICT (key) DO UPDATE SET blob_id = EXCLUDED.blob_id, blob_offset = EXCLUDED.blob_offset, size = EXCLUDED.size,
      end_epoch = EXCLUDED.end_epoch, expires_at = EXCLUDED.expires_at, updated_at = EXCLUDED.updated_at"
}

grow() { # grow FROM TO: in steps, to look at the disk in between.
  local at step=1000000 to
  for ((at = $1; at < $2; at += step)); do
    to=$((at + step < $2 ? at + step : $2))
    check_room $((to - at))
    sql "$(rows_sql "$at" "$((to - 1))")"
  done
}

# load FROM TO: the same rows without indexes; then the indexes. Sets `reached`: less than TO where
# the disk has no room for more.
load() {
  local step=$((4000 * 256)) to
  sql "SET client_min_messages = error; ALTER TABLE $table DROP CONSTRAINT IF EXISTS ${table}_key; DROP INDEX IF EXISTS ${table}_blob"
  for ((reached = $1; reached < $2; reached = to)); do
    to=$((reached + step < $2 ? reached + step : $2))
    has_room $(((to - reached) * heap_bytes + to * build_bytes)) || break
    sql "INSERT INTO $table (key, blob_id, blob_offset, size, end_epoch, expires_at)
      SELECT $key, id, n % 256 * 262144, 262144, 60, now() + interval '1 year'
      FROM (SELECT blob, $blob AS id FROM generate_series($reached::bigint / 256, $to::bigint / 256) AS blob OFFSET 0) AS blobs,
        LATERAL generate_series(greatest(blob * 256, $reached), least(blob * 256 + 255, $to - 1)) AS n"
  done
  ((reached > $1)) || die "no room for more than $1 rows beside $keep_free GiB that are to stay free (KEEP_FREE_GB)"
  sql CHECKPOINT
  say "$(date +%T) $reached rows are loaded, their indexes come next"
  make_indexes
}

# bench COUNT CLIENTS SCRIPT: mean latency (ms) of a statement on a table of COUNT rows.
bench() {
  printf '%s\n' "$3" >"$dir/script"
  PGOPTIONS='' pgbench -n -M prepared -c "$2" -j 1 -T "$each" -D rows="$1" -f "$dir/script" "$url" 2>"$dir/said" >"$dir/out" ||
    die "pgbench: $(cat "$dir/said")"
  sed -n 's/^latency average = \([0-9.]*\) ms/\1/p' "$dir/out"
}

columns="FALSE AS staged, blob_id, '' AS patch_id, blob_offset, size, deletable, end_epoch, expires_at"
one="\\set n random(0, :rows - 1)
SELECT $columns FROM $table WHERE key = index_scale_key(:n);"
unknown="\\set n random(0, :rows - 1)
SELECT $columns FROM $table WHERE key = index_scale_key(:n + 1000000000000);"
hundred="\\set n random(0, :rows - 1)
SELECT $columns, key FROM $table WHERE key = ANY(ARRAY(SELECT index_scale_key((:n + i * 7919) % :rows) FROM generate_series(1, 100) AS i));"
page() {
  printf '%s' "\\set n random(0, :rows - 1)
SELECT FALSE, key, size, expires_at FROM $table WHERE key > index_scale_key(:n) ORDER BY key LIMIT $1;"
}

size_of() { # size_of FUNCTION: bytes of the table and its partitions.
  sql "SELECT sum($1(c.oid))::bigint FROM pg_class c WHERE c.relname ~ '^${table}(_[0-9]+)?$' AND c.relkind = 'r'"
}

measure() { # measure PARTITIONS COUNT SECONDS_TO_GROW GROWN
  local name='one table' count=$2 from seconds batch=5000 batches=20 n
  (($1 == 0)) || name="$1 partitions"
  local vacuum
  vacuum=$(timed "VACUUM ANALYZE $table")
  sql CHECKPOINT
  local line="| $name | $((count / 1000000)).$((count / 100000 % 10)) | $(awk "BEGIN { printf \"%.0f\", $4 / $3 }")"
  line+=" | $(awk "BEGIN { printf \"%.0f\", $(size_of pg_total_relation_size) / $count }") ($(awk "BEGIN { printf \"%.0f\", $(size_of pg_indexes_size) / $count }"))"
  line+=" | $vacuum"
  bench "$count" 1 "$one" >/dev/null # warms the memory
  line+=" | $(bench "$count" 1 "$one") | $(bench "$count" 1 "$unknown") | $(bench "$count" 1 "$hundred")"
  line+=" | $(bench "$count" 1 "$(page 64)") | $(bench "$count" 1 "$(page 8192)")"
  # Bulk writes as the engine makes them: 5,000 rows in a statement and transaction, new ones.
  from=$(date +%s.%N)
  for ((n = 0; n < batches; n++)); do
    rows_sql $((count + n * batch)) $((count + n * batch + batch - 1))
    echo ';'
  done | psql -qX -v ON_ERROR_STOP=1 "$url" >/dev/null
  seconds=$(awk "BEGIN { print $(date +%s.%N) - $from }")
  line+=" | $(awk "BEGIN { printf \"%.0f\", $batches * $batch / $seconds }")"
  # They are deleted again, 100 keys in a statement.
  from=$(date +%s.%N)
  for ((n = count; n < count + batches * batch; n += 100)); do
    echo "WITH d AS (DELETE FROM $table WHERE key = ANY(ARRAY(SELECT index_scale_key(i) FROM generate_series($n::bigint, $n + 99) AS i)) RETURNING size)
      SELECT count(*), sum(size), set_config('synchronous_commit', 'off', true) FROM d;"
  done | psql -qX -v ON_ERROR_STOP=1 "$url" >/dev/null
  seconds=$(awk "BEGIN { print $(date +%s.%N) - $from }")
  line+=" | $(awk "BEGIN { printf \"%.0f\", $batches * $batch / $seconds }") |"
  echo "$line"
}

# What a vacuum gives back: one row in so many is deleted, vacuumed, and written again.
churn() { # churn PARTITIONS COUNT
  local name='one table' before deleted vacuum after written again count=$2
  (($1 == 0)) || name="$1 partitions"
  sql "VACUUM $table" # after the rows of the last measurement
  before=$(size_of pg_total_relation_size)
  deleted=$(timed "DELETE FROM $table WHERE key = ANY(ARRAY(SELECT index_scale_key(i * $churned_part) FROM generate_series(0, $count / $churned_part - 1) AS i))")
  vacuum=$(timed "VACUUM $table")
  after=$(size_of pg_total_relation_size)
  written=$(timed "$(rows_sql "$count" $((count + count / churned_part - 1)))")
  again=$(size_of pg_total_relation_size)
  echo "| $name, $((count / 1000000)).$((count / 100000 % 10)) million | $((count / churned_part)) | $deleted | $vacuum | $written | $(awk "BEGIN { printf \"%.3f | %.3f\", $after / $before, $again / $before }") |"
}

results="$dir/results" churned="$dir/churned"
: >"$results"
: >"$churned"
for parts in $partitions; do
  make_table "$parts"
  at=0
  for count in $rows; do
    ((count > at)) || die "ROWS=\"$rows\": the sizes must grow"
    say "$(date +%T) $parts partitions, $count rows"
    from=$(date +%s.%N)
    if [[ -n $bulk ]]; then
      load "$at" "$count"
    else
      grow "$at" "$count"
      reached=$count
    fi
    seconds=$(awk "BEGIN { print $(date +%s.%N) - $from }")
    measure "$parts" "$reached" "$seconds" $((reached - at)) | tee -a "$results" >&2
    at=$reached
    ((reached == count)) || break
  done
  churn "$parts" "$at" | tee -a "$churned" >&2
  sql "DROP TABLE $table"
done
sql "DROP FUNCTION index_scale_key(bigint)"

cat <<END
PostgreSQL $(sql 'SHOW server_version'), shared_buffers $(sql 'SHOW shared_buffers'), $(nproc) processors, $(date -u +%F)

| table | million rows | rows/s while it grows${bulk:+ (loaded without indexes, which were built then)} | bytes per row (indexes) | VACUUM ANALYZE (s) | known key (ms) | unknown key (ms) | 100 keys (ms) | page of 64 (ms) | page of 8,192 (ms) | new rows/s, 5,000 at once | deletions/s, 100 at once |
|---|---|---|---|---|---|---|---|---|---|---|---|
$(cat "$results")

One row in $churned_part deleted, vacuumed, and as many new ones written:

| table | rows | delete (s) | VACUUM (s) | write (s) | size after the vacuum | size when as many rows were written |
|---|---|---|---|---|---|---|
$(cat "$churned")
END
