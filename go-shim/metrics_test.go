package walrusds

import (
	"context"
	"fmt"
	"math"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	dto "github.com/prometheus/client_model/go"
)

// gathered returns what Kubo's endpoint would give, by name: the metrics of this package alone.
func gathered(t *testing.T) map[string]*dto.MetricFamily {
	t.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	must(t, err) // one duplicate would be an error here, and answered with 500 by Kubo
	own := make(map[string]*dto.MetricFamily)
	for _, family := range families {
		if strings.HasPrefix(family.GetName(), "walrusds_") {
			own[family.GetName()] = family
		}
	}
	return own
}

// labelled returns the metric with these labels, given as name and value in turn.
func labelled(t *testing.T, family *dto.MetricFamily, labels ...string) *dto.Metric {
	t.Helper()
	for _, metric := range family.GetMetric() {
		has := make(map[string]string)
		for _, label := range metric.GetLabel() {
			has[label.GetName()] = label.GetValue()
		}
		all := true
		for i := 0; i < len(labels); i += 2 {
			all = all && has[labels[i]] == labels[i+1]
		}
		if all {
			return metric
		}
	}
	t.Fatalf("%s has nothing with %v: %v", family.GetName(), labels, family.GetMetric())
	return nil
}

func TestMetricsAreGathered(t *testing.T) {
	s := spec(t)
	s["journalPath"], s["cachePath"] = "journal", "cache"
	s["epochDurationSeconds"], s["renewIntervalSeconds"], s["epochs"] = 86400, 1, 5
	d, err := Open(s, t.TempDir())
	must(t, err)
	defer d.Close()
	ctx := context.Background()
	must(t, d.Put(ctx, key("/one"), random(1000)))
	_, err = d.Get(ctx, key("/one"))
	must(t, err)

	own := gathered(t)
	host := strings.TrimPrefix(walrusURL, "http://")
	if n := labelled(t, own["walrusds_gets_total"]).GetCounter().GetValue(); n != 1 {
		t.Errorf("%v gets", n)
	}
	get := labelled(t, own["walrusds_operation_duration_seconds"], "operation", "get").GetHistogram()
	if get.GetSampleCount() != 1 || get.GetSampleSum() <= 0 || len(get.GetBucket()) < 10 {
		t.Errorf("the time of a get: %v", get)
	}
	labelled(t, own["walrusds_endpoint_healthy"], "role", "publisher", "host", host)
	labelled(t, own["walrusds_endpoint_answers_total"], "role", "aggregator", "host", host)
	if n := labelled(t, own["walrusds_journal_bytes"]).GetGauge().GetValue(); n != 1000 {
		t.Errorf("%v bytes in the journal", n)
	}
	oldest := labelled(t, own["walrusds_journal_oldest_timestamp_seconds"]).GetGauge().GetValue()
	if age := float64(time.Now().UnixNano())/1e9 - oldest; age < 0 || age > patience.Seconds() {
		t.Errorf("the oldest block has waited for %v s", age)
	}

	// The ledger's figures come with a round of renewal.
	until(t, "the ledger was read", func() bool {
		return gathered(t)["walrusds_ledger_blobs"] != nil
	})
	own = gathered(t)
	labelled(t, own["walrusds_ledger_horizon_blobs"], "epochs_left", "32+")
	labelled(t, own["walrusds_storage_epoch_frost"], "price", "sample")

	lint(t, own)
}

// lint applies the rules of `promtool check metrics`.
func lint(t *testing.T, own map[string]*dto.MetricFamily) {
	t.Helper()
	var families []*dto.MetricFamily
	for _, family := range own {
		families = append(families, family)
	}
	problems, err := promlint.NewWithMetricFamilies(families).Lint()
	must(t, err)
	for _, problem := range problems {
		t.Errorf("%s: %s", problem.Metric, problem.Text)
	}
	if len(own) < 60 {
		t.Errorf("only %d metrics", len(own))
	}
}

func TestSeveralDatastoresAreToldApart(t *testing.T) {
	s := spec(t)
	table := s["table"].(string)
	first, err := Open(s, t.TempDir())
	must(t, err)
	defer first.Close()
	if labels := labelled(t, gathered(t)["walrusds_gets_total"]).GetLabel(); len(labels) != 0 {
		t.Errorf("a single datastore has the labels %v", labels)
	}
	// Two of the same table, in different repos.
	second, err := Open(s, t.TempDir())
	must(t, err)
	defer second.Close()
	must(t, second.Put(context.Background(), key("/x"), random(10)))
	own := gathered(t)
	puts := own["walrusds_blocks_put_total"]
	if n := labelled(t, puts, "table", table).GetCounter().GetValue(); n != 0 {
		t.Errorf("%v puts into the first", n)
	}
	if n := labelled(t, puts, "table", table+"#2").GetCounter().GetValue(); n != 1 {
		t.Errorf("%v puts into the second", n)
	}
	lint(t, own)
	must(t, second.Close())
	must(t, first.Close())
	if own := gathered(t); len(own) != 0 {
		t.Errorf("closed datastores give %v", own)
	}
}

// A scrape waits for nothing: neither for a call nor for a Walrus that does not answer.
func TestScrapeDoesNotWait(t *testing.T) {
	s := spec(t)
	s["publisherURL"] = newSilentServer(t)
	d, err := Open(s, t.TempDir())
	must(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	for i := 0; i < 20; i++ {
		go func(i int) { done <- d.Put(ctx, key("/%d", i), random(100)) }(i)
	}
	until(t, "uploads are under way", func() bool {
		return counter(t, d, "uploads_running") > 0
	})
	best := time.Hour
	for i := 0; i < 50; i++ {
		begun := time.Now()
		metrics := make(chan prometheus.Metric, 10000)
		metricsCollector().Collect(metrics)
		best = min(best, time.Since(begun))
		if len(metrics) < 60 {
			t.Fatalf("%d metrics", len(metrics))
		}
	}
	t.Logf("a scrape takes %v", best)
	if best > 2*time.Millisecond && !raceEnabled {
		t.Errorf("the fastest of 50 scrapes took %v", best)
	}
	cancel()
	for i := 0; i < 20; i++ {
		<-done
	}
	must(t, d.Close())
}

func TestOpenMetricsAreRead(t *testing.T) {
	text := `# TYPE a gauge
# HELP a says \"x\" and \\
a{host="h\"\\\n,}",role="r"} 1.5
a NaN
# TYPE b counter
# HELP b n
b_total 7
# TYPE c histogram
# HELP c t
c_bucket{x="1",le="0.5"} 1
c_bucket{x="1",le="+Inf"} 3
c_sum{x="1"} 2.5
c_count{x="1"} 3
# EOF
`
	var all []sample
	must(t, readOpenMetrics([]byte(text), func(s *sample) error {
		if _, err := s.metric(); err != nil {
			return err
		}
		all = append(all, *s)
		return nil
	}))
	if len(all) != 4 || !math.IsNaN(all[1].number) {
		t.Fatalf("%+v", all)
	}
	all[1].number = 0
	want := []sample{
		{name: "a", kind: "gauge", help: `says "x" and \`, labels: []string{"host", "role"}, values: []string{"h\"\\\n,}", "r"}, number: 1.5},
		{name: "a", kind: "gauge", help: `says "x" and \`},
		{name: "b_total", kind: "counter", help: "n", number: 7},
		{name: "c", kind: "histogram", help: "t", labels: []string{"x"}, values: []string{"1"}, number: 2.5, count: 3, buckets: map[float64]uint64{0.5: 1}},
	}
	if !reflect.DeepEqual(all, want) {
		t.Errorf("read %+v\nwant %+v", all, want)
	}
	for _, bad := range []string{"a 1", "# TYPE a gauge\na{x=1} 2", "# TYPE a gauge\na{x=\"1} 2", "# TYPE a gauge\na one",
		"# TYPE a gauge\nb 1", "# TYPE a histogram\na_bucket 1", "# TYPE a histogram\na_most 1"} {
		if err := readOpenMetrics([]byte(bad), func(*sample) error { return nil }); err == nil {
			t.Errorf("%q was read", bad)
		}
	}
}

func metricsCollector() *collector { return &metrics }

func BenchmarkScrape(b *testing.B) {
	d := open(b)
	must(b, d.Put(context.Background(), key("/x"), random(10)))
	b.ReportAllocs()
	b.ResetTimer()
	for i := 0; i < b.N; i++ {
		metrics := make(chan prometheus.Metric, 10000)
		metricsCollector().Collect(metrics)
		if len(metrics) == 0 {
			b.Fatal(fmt.Errorf("no metrics"))
		}
	}
}
