//! The description of every metric of a datastore.

/// How a metric moves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricKind {
    /// It only grows, from 0 when the datastore is opened.
    Counter,
    /// It goes up and down.
    Gauge,
    /// It counts values by their size, from the opening of the datastore on.
    Histogram,
}

/// The unit of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum MetricUnit {
    /// Things or events: blocks, blobs, requests.
    Count,
    /// Bytes.
    Bytes,
    /// FROST, the smallest unit of WAL: 1 WAL is 10^9 FROST.
    Frost,
    /// Seconds; of a moment, since 1970.
    Seconds,
    /// A part of a whole, 0 to 1.
    Ratio,
}

/// The description of a metric, for programs that export it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub struct Metric {
    /// Its name in [`WalrusDatastore::metrics`](crate::WalrusDatastore::metrics) and
    /// [`WalrusDatastore::samples`](crate::WalrusDatastore::samples).
    pub name: &'static str,
    /// How it moves.
    pub kind: MetricKind,
    /// Its unit.
    pub unit: MetricUnit,
    /// Its meaning, for people.
    pub help: &'static str,
    /// The names of its labels.
    pub labels: &'static [&'static str],
}

impl Metric {
    /// Its name in [`WalrusDatastore::open_metrics`](crate::WalrusDatastore::open_metrics) and in
    /// Prometheus.
    pub fn exported_name(&self) -> String {
        let suffix = match self.kind {
            MetricKind::Counter => "_total",
            MetricKind::Gauge | MetricKind::Histogram => "",
        };
        format!("{}{suffix}", self.family())
    }

    /// The same without the ending of a counter.
    pub(crate) fn family(&self) -> String {
        format!("walrusds_{}", self.name)
    }

    const fn of(
        kind: MetricKind,
        name: &'static str,
        unit: MetricUnit,
        help: &'static str,
    ) -> Metric {
        Metric {
            name,
            kind,
            unit,
            help,
            labels: &[],
        }
    }

    const fn by(mut self, labels: &'static [&'static str]) -> Metric {
        self.labels = labels;
        self
    }
}

const fn counter(name: &'static str, unit: MetricUnit, help: &'static str) -> Metric {
    Metric::of(MetricKind::Counter, name, unit, help)
}

const fn gauge(name: &'static str, unit: MetricUnit, help: &'static str) -> Metric {
    Metric::of(MetricKind::Gauge, name, unit, help)
}

const fn histogram(name: &'static str, unit: MetricUnit, help: &'static str) -> Metric {
    Metric::of(MetricKind::Histogram, name, unit, help)
}

/// Every metric of a datastore. The metrics of the journal and of the disk cache exist when these
/// are configured.
#[rustfmt::skip]
pub const METRICS: &[Metric] = &[
    counter("blocks_put", MetricUnit::Count, "blocks handed over by put and batch commit"),
    counter("bytes_put", MetricUnit::Bytes, "bytes of the blocks handed over"),
    counter("blocks_known", MetricUnit::Count, "blocks handed over that were stored already and not uploaded"),
    counter("blocks_adopted", MetricUnit::Count, "blocks that a Go node had staged and left behind, stored by this node"),
    counter("blocks_undeleted", MetricUnit::Count, "deleted blocks whose rows were brought back, by a put or an undelete"),
    counter("deletes", MetricUnit::Count, "keys deleted"),
    counter("commits", MetricUnit::Count, "puts, deletes and batch commits"),
    counter("gets", MetricUnit::Count, "blocks read"),
    counter("get_bytes", MetricUnit::Bytes, "bytes of blocks read"),
    counter("read_hits", MetricUnit::Count, "blocks read that were in memory"),
    counter("journal_hits", MetricUnit::Count, "blocks read that lay in a file of the journal, on Walrus already or not"),
    counter("read_windows", MetricUnit::Count, "windows asked of aggregators: several blocks at once"),
    counter("read_window_bytes", MetricUnit::Bytes, "bytes of the windows that came"),
    counter("read_ahead_bytes", MetricUnit::Bytes, "bytes asked for before a reader wanted them"),
    counter("read_windows_failed", MetricUnit::Count, "windows that did not come; their blocks were read one by one"),
    counter("read_wasted_bytes", MetricUnit::Bytes, "bytes of windows that left memory unread"),
    gauge("read_cache_bytes", MetricUnit::Bytes, "memory held for reading now"),
    counter("lookups", MetricUnit::Count, "has and size lookups"),
    counter("packs_stored", MetricUnit::Count, "blobs stored"),
    counter("pack_bytes", MetricUnit::Bytes, "bytes of the blobs stored, before encoding"),
    counter("blocks_packed", MetricUnit::Count, "blocks in the blobs stored: divided by `packs_stored`, the packing ratio"),
    counter("packs_split", MetricUnit::Count, "packs split because a publisher refused their size"),
    counter("packs_failed", MetricUnit::Count, "packs given up; their writers got an error"),
    counter("renewals", MetricUnit::Count, "blobs renewed"),
    counter("blobs_extended", MetricUnit::Count, "blobs whose storage was extended on the chain (among the renewals)"),
    counter("blobs_repacked", MetricUnit::Count, "sparse blobs whose live blocks were carried over into other blobs"),
    counter("blobs_deleted", MetricUnit::Count, "blobs without live blocks that were deleted on the chain"),
    counter("renewals_failed", MetricUnit::Count, "renewals that failed, to be tried again"),
    gauge("uploads_running", MetricUnit::Count, "uploads under way now"),
    gauge("uploads_limit", MetricUnit::Count, "how many may be, at present"),
    counter("walrus_puts", MetricUnit::Count, "stores that succeeded, renewals included"),
    counter("walrus_put_bytes", MetricUnit::Bytes, "bytes of the stores that succeeded"),
    counter("walrus_put_failures", MetricUnit::Count, "stores that failed after all attempts"),
    counter("walrus_gets", MetricUnit::Count, "reads that an aggregator answered well"),
    counter("walrus_get_bytes", MetricUnit::Bytes, "bytes received from aggregators, failed attempts included"),
    counter("walrus_retries", MetricUnit::Count, "attempts at an endpoint that the request had asked before"),
    counter("walrus_failovers", MetricUnit::Count, "attempts at another endpoint after one failed"),
    counter("walrus_throttled", MetricUnit::Count, "429 and 503 answers"),
    counter("walrus_not_found", MetricUnit::Count, "404 answers"),
    counter("walrus_corrupt", MetricUnit::Count, "answers whose bytes failed the check"),
    counter("walrus_cache_hits", MetricUnit::Count, "quilt members served from memory"),
    counter("walrus_cache_misses", MetricUnit::Count, "single blocks and quilt members not served from memory, with the memory on"),
    counter("walrus_hedges", MetricUnit::Count, "reads that a second aggregator was asked for, since the first was slow to answer"),
    counter("walrus_hedge_wins", MetricUnit::Count, "reads in which the second aggregator was first"),
    counter("walrus_cost_frost", MetricUnit::Frost, "paid for blobs, renewals included (FROST)"),
    counter("walrus_encoded_bytes", MetricUnit::Bytes, "encoded size of new blobs on the network"),
    gauge("journal_blocks", MetricUnit::Count, "blocks in the journal"),
    gauge("journal_bytes", MetricUnit::Bytes, "bytes of the blocks in the journal"),
    gauge("journal_disk_bytes", MetricUnit::Bytes, "bytes of the journal's files"),
    counter("journal_syncs", MetricUnit::Count, "syncs of the journal's files"),
    counter("disk_cache_hits", MetricUnit::Count, "blocks that the disk cache had"),
    counter("disk_cache_misses", MetricUnit::Count, "blocks that the disk cache was asked for and had not"),
    gauge("disk_cache_bytes", MetricUnit::Bytes, "bytes of the disk cache's files"),
    counter("disk_cache_evictions", MetricUnit::Count, "files that the disk cache removed to make room"),
    counter("disk_cache_dropped", MetricUnit::Count, "blocks that the disk cache did not take because too many waited to be written"),
    counter("disk_cache_errors", MetricUnit::Count, "blocks that the disk cache found damaged, and failures of its disk"),
    histogram("operation_duration_seconds", MetricUnit::Seconds, "time of a call of the datastore, by operation (put, commit, delete, get, lookup), and of a pack's way out of the journal (flush)").by(&["operation"]),
    counter("operation_errors", MetricUnit::Count, "calls that ended with an error, by operation").by(&["operation"]),
    histogram("upload_duration_seconds", MetricUnit::Seconds, "time of the upload of a blob with all its attempts, by outcome (stored, failed)").by(&["outcome"]),
    histogram("upload_attempt_duration_seconds", MetricUnit::Seconds, "time of one attempt to store a blob at a publisher, by outcome (well, failed)").by(&["outcome"]),
    histogram("read_attempt_duration_seconds", MetricUnit::Seconds, "time of one attempt to read from an aggregator, by outcome (well, failed)").by(&["outcome"]),
    histogram("upload_size_bytes", MetricUnit::Bytes, "size of the blobs stored, by format").by(&["format"]),
    histogram("upload_fill_ratio", MetricUnit::Ratio, "how full the packs stored are, as a part of the ceiling at that time"),
    gauge("last_upload_timestamp_seconds", MetricUnit::Seconds, "when an upload last succeeded, or when the datastore was opened"),
    counter("endpoint_answers", MetricUnit::Count, "attempts that an endpoint answered well, by role (publisher, aggregator) and host").by(&["role", "host"]),
    counter("endpoint_failures", MetricUnit::Count, "attempts that failed, by role, host and cause").by(&["role", "host", "cause"]),
    counter("endpoint_retries", MetricUnit::Count, "attempts at an endpoint that the same request had asked before, by role and the cause of the failure before").by(&["role", "cause"]),
    gauge("endpoint_healthy", MetricUnit::Count, "1 if an endpoint of that role and host did well lately, 0 if it is asked last").by(&["role", "host"]),
    gauge("endpoint_answer_seconds", MetricUnit::Seconds, "time until an answer of an endpoint begins, a moving mean, by role and host").by(&["role", "host"]),
    gauge("publisher_wallet_empty", MetricUnit::Count, "1 if a publisher said at the last store that its wallet lacks coins, by role and host").by(&["role", "host"]),
    gauge("journal_oldest_timestamp_seconds", MetricUnit::Seconds, "when the oldest block of the journal was written, or found at the start; absent while the journal is empty"),
    gauge("journal_max_bytes", MetricUnit::Bytes, "size of the journal's files at which writes wait (journalMaxBytes)"),
    gauge("journal_waiting_writes", MetricUnit::Count, "writes that wait for room in the journal"),
    gauge("journal_failures_in_row", MetricUnit::Count, "failed steps of packs since the journal's packs last all went on"),
    gauge("journal_failing_seconds", MetricUnit::Seconds, "for how long some pack of the journal has failed; 0 if none fails"),
    counter("index_queries", MetricUnit::Count, "combined lookups sent to the index"),
    counter("index_query_keys", MetricUnit::Count, "keys in the combined lookups: divided by `index_queries`, how many travel together"),
    counter("row_cache_hits", MetricUnit::Count, "rows that were in memory when they were looked up"),
    gauge("ledger_blobs", MetricUnit::Count, "live blobs, from the ledger"),
    gauge("ledger_bytes", MetricUnit::Bytes, "bytes of the live blobs, as far as they are known"),
    gauge("ledger_encoded_bytes", MetricUnit::Bytes, "encoded bytes of the live blobs on the network, as far as they are known"),
    gauge("ledger_live_blocks", MetricUnit::Count, "live blocks at the last counts"),
    gauge("ledger_live_bytes", MetricUnit::Bytes, "bytes of the live blocks at the last counts"),
    gauge("ledger_waste_ratio", MetricUnit::Ratio, "the part of the counted live blobs' bytes that no live block uses, quilts left out"),
    gauge("ledger_uncounted_blobs", MetricUnit::Count, "live blobs whose live blocks were never counted"),
    gauge("ledger_counted_timestamp_seconds", MetricUnit::Seconds, "when the oldest of the counts was made"),
    gauge("ledger_read_timestamp_seconds", MetricUnit::Seconds, "when the ledger's figures were read from the index"),
    gauge("ledger_paid_frost", MetricUnit::Frost, "what was paid for the live blobs so far (FROST)"),
    gauge("ledger_horizon_blobs", MetricUnit::Count, "live blobs by the epochs that are left of their storage: 0 = ended or ending with the present epoch, then 1, 2-3, 4-7, 8-15, 16-31, 32+, unknown").by(&["epochs_left"]),
    gauge("next_expiry_timestamp_seconds", MetricUnit::Seconds, "the earliest moment at which the storage of a live blob may end; blobs that have ended are left out"),
    gauge("ended_blobs", MetricUnit::Count, "live blobs whose storage has ended"),
    gauge("renewal_lead_seconds", MetricUnit::Seconds, "how long before its end a blob is renewed (renewLeadSeconds)"),
    gauge("renewal_round_timestamp_seconds", MetricUnit::Seconds, "when this node last ended a round of renewals"),
    gauge("renewal_due_blobs", MetricUnit::Count, "blobs that were due in this node's last round"),
    gauge("renewal_due_units", MetricUnit::Count, "units (MiB of encoded size) that the last round's plan buys"),
    gauge("renewal_due_frost", MetricUnit::Frost, "price of the last round's plan (FROST)"),
    gauge("storage_units", MetricUnit::Count, "units (MiB of encoded size) that the live blobs are billed for in each epoch"),
    gauge("storage_epoch_frost", MetricUnit::Frost, "forecast: price of one epoch of storage for the live blobs, by source of the price (chain, sample)").by(&["price"]),
];
