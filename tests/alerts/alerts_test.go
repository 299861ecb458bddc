// Package alerts tests the alert rules in contrib/prometheus: each fires for its cause, a fault of a
// real local Walrus, and clears when that is cured. The rules are evaluated by Prometheus' own
// engine, on what a datastore gives to Prometheus' registry.
//
// The time of the rules is not that of the machine: a step scrapes the datastore and lets minutes or
// hours pass for the rules. The metrics that hold moments tell the machine's time, so that they seem
// as old as the steps make them.
package alerts

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	ds "github.com/ipfs/go-datastore"
	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/prometheus/model/histogram"
	"github.com/prometheus/prometheus/model/labels"
	"github.com/prometheus/prometheus/model/rulefmt"
	"github.com/prometheus/prometheus/model/value"
	"github.com/prometheus/prometheus/promql"
	"github.com/prometheus/prometheus/storage"
	"github.com/prometheus/prometheus/tsdb/chunkenc"
	"github.com/prometheus/prometheus/tsdb/chunks"
	"github.com/prometheus/prometheus/util/annotations"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

const (
	rulesFile = "../../contrib/prometheus/walrusds.rules.yml"
	day       = 24 * time.Hour
	// patience is how long a test waits for an expected event: longer than a busy machine needs.
	patience = 2 * time.Minute
)

// tested are the alerts that some test has seen firing and clearing.
var tested = make(map[string]bool)

func TestMain(m *testing.M) {
	code := m.Run()
	if code == 0 && !filtered() {
		for _, rule := range rules() {
			if !tested[rule.Alert.Value] {
				fmt.Fprintf(os.Stderr, "no test lets %s fire\n", rule.Alert.Value)
				code = 1
			}
		}
	}
	os.Exit(code)
}

func filtered() bool {
	for _, arg := range os.Args {
		if strings.HasPrefix(arg, "-test.run=") {
			return true
		}
	}
	return false
}

func rules() []rulefmt.RuleNode {
	groups, errs := rulefmt.ParseFile(rulesFile)
	if len(errs) > 0 {
		panic(errors.Join(errs...))
	}
	var all []rulefmt.RuleNode
	for _, group := range groups.Groups {
		all = append(all, group.Rules...)
	}
	return all
}

// sample is a scraped value.
type sample struct {
	t int64
	f float64
}

func (s sample) T() int64                      { return s.t }
func (s sample) F() float64                    { return s.f }
func (s sample) H() *histogram.Histogram       { return nil }
func (s sample) FH() *histogram.FloatHistogram { return nil }
func (s sample) Type() chunkenc.ValueType      { return chunkenc.ValFloat }

// scraped keeps what was scraped, as Prometheus does.
type scraped struct {
	points map[string][]chunks.Sample
	labels map[string]labels.Labels
}

func (s *scraped) add(at time.Time, name string, number float64, own []*dto.LabelPair, more ...string) {
	pairs := append([]string{labels.MetricName, name, "instance", "node:5001", "job", "ipfs"}, more...)
	for _, label := range own {
		pairs = append(pairs, label.GetName(), label.GetValue())
	}
	set := labels.FromStrings(pairs...)
	id := set.String()
	s.labels[id] = set
	s.points[id] = append(s.points[id], sample{at.UnixMilli(), number})
}

// stale marks the series that the last scrape did not find, as Prometheus does.
func (s *scraped) stale(at time.Time) {
	for id, points := range s.points {
		last := points[len(points)-1]
		if last.T() < at.UnixMilli() && !value.IsStaleNaN(last.F()) {
			s.points[id] = append(points, sample{at.UnixMilli(), math.Float64frombits(value.StaleNaN)})
		}
	}
}

func (s *scraped) Querier(int64, int64) (storage.Querier, error) {
	return querier{storage.NoopQuerier(), s}, nil
}

type querier struct {
	storage.Querier
	of *scraped
}

func (q querier) Select(_ context.Context, _ bool, _ *storage.SelectHints, matchers ...*labels.Matcher) storage.SeriesSet {
	var found []storage.Series
	for id, set := range q.of.labels {
		all := true
		for _, matcher := range matchers {
			all = all && matcher.Matches(set.Get(matcher.Name))
		}
		if all {
			found = append(found, storage.NewListSeries(set, q.of.points[id]))
		}
	}
	return &seriesSet{found: found}
}

type seriesSet struct {
	found []storage.Series
	next  int
}

func (s *seriesSet) Next() bool                        { s.next++; return s.next <= len(s.found) }
func (s *seriesSet) At() storage.Series                { return s.found[s.next-1] }
func (s *seriesSet) Err() error                        { return nil }
func (s *seriesSet) Warnings() annotations.Annotations { return nil }

// world is a local Walrus, a datastore, and a Prometheus with its own time.
type world struct {
	*testing.T
	url, repo string
	d         *walrusds.Datastore

	now    time.Time
	data   scraped
	engine *promql.Engine
	since  map[string]time.Time // when each alert's expression began to hold
}

func newWorld(t *testing.T) *world {
	w := &world{
		T: t, repo: t.TempDir(), now: time.Now(), since: make(map[string]time.Time),
		data: scraped{points: make(map[string][]chunks.Sample), labels: make(map[string]labels.Labels)},
		engine: promql.NewEngine(promql.EngineOpts{
			MaxSamples: 1 << 20, Timeout: patience, LookbackDelta: 5 * time.Minute,
		}),
	}
	w.startWalrus()
	return w
}

func (w *world) must(err error) {
	w.Helper()
	if err != nil {
		w.Fatal(err)
	}
}

func (w *world) startWalrus() {
	program := os.Getenv("WALRUSDS_TEST_DEVNET")
	if program == "" {
		program = "../../target/release/walrus-devnet"
	}
	portFile := filepath.Join(w.TempDir(), "port")
	cmd := exec.Command(program, "--listen", "127.0.0.1:0", "--port-file", portFile, "--memory", "--cheap-ids", "--quiet")
	cmd.Stderr = os.Stderr
	w.must(cmd.Start())
	w.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	w.until("the local Walrus is up", func() bool {
		port, err := os.ReadFile(portFile)
		w.url = "http://127.0.0.1:" + strings.TrimSpace(string(port))
		return err == nil && len(port) > 0
	})
}

// open opens the datastore anew, with these settings beside the usual ones.
func (w *world) open(settings map[string]any) {
	w.Helper()
	if w.d != nil {
		w.must(w.d.Close())
	}
	spec := map[string]any{
		"publisherURL": w.url, "aggregatorURL": w.url, "indexPath": "index.sqlite",
		"maxRetries": 0, "blobCacheBytes": -1,
	}
	for key, value := range settings {
		spec[key] = value
	}
	d, err := walrusds.Open(spec, w.repo)
	w.must(err)
	w.d = d
	w.Cleanup(func() { d.Close() })
}

func (w *world) admin(method, path, body string) {
	w.Helper()
	request, err := http.NewRequest(method, w.url+"/admin/"+path, strings.NewReader(body))
	w.must(err)
	request.Header.Set("Content-Type", "application/json")
	answer, err := http.DefaultClient.Do(request)
	w.must(err)
	answer.Body.Close()
	if answer.StatusCode/100 != 2 {
		w.Fatalf("%s %s: %s", method, path, answer.Status)
	}
}

// fault lets these operations of the local Walrus fail, until cured.
func (w *world) fault(action map[string]any, ops ...string) {
	w.Helper()
	rule := map[string]any{"match": map[string]any{"op": ops}, "action": action}
	plan, err := json.Marshal(map[string]any{"rules": []any{rule}})
	w.must(err)
	w.admin("PUT", "faults", string(plan))
}

func (w *world) cured() { w.Helper(); w.admin("DELETE", "faults", "") }

func (w *world) put(name string, size int) error {
	value := make([]byte, size)
	rand.Read(value)
	return w.d.Put(context.Background(), ds.RawKey(name), value)
}

func (w *world) get(name string) error {
	_, err := w.d.Get(context.Background(), ds.RawKey(name))
	return err
}

// named is a block and the key that names its content, as Kubo's block store does.
func named(size int) (key string, value []byte) {
	value = make([]byte, size)
	rand.Read(value)
	sum := sha256.Sum256(value)
	multihash := append([]byte{0x12, 0x20}, sum[:]...)
	return "/" + base32.StdEncoding.WithPadding(base32.NoPadding).EncodeToString(multihash), value
}

func (w *world) delete(name string) { w.must(w.d.Delete(context.Background(), ds.RawKey(name))) }

func (w *world) until(what string, so func() bool) {
	w.Helper()
	for end := time.Now().Add(patience); !so(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			w.Fatalf("never: %s", what)
		}
	}
}

// value is a metric of the datastore now, the sum over its labels; -1 if it is absent.
func (w *world) value(name string) float64 {
	w.Helper()
	families, err := prometheus.DefaultGatherer.Gather()
	w.must(err)
	for _, family := range families {
		if family.GetName() != name {
			continue
		}
		sum := 0.0
		for _, metric := range family.GetMetric() {
			sum += metric.GetCounter().GetValue() + metric.GetGauge().GetValue()
		}
		return sum
	}
	return -1
}

// step lets time pass for the rules, scrapes, and evaluates them.
func (w *world) step(by time.Duration) {
	w.Helper()
	w.now = w.now.Add(by)
	families, err := prometheus.DefaultGatherer.Gather()
	w.must(err)
	for _, family := range families {
		for _, metric := range family.GetMetric() {
			switch family.GetType() {
			case dto.MetricType_COUNTER:
				w.data.add(w.now, family.GetName(), metric.GetCounter().GetValue(), metric.GetLabel())
			case dto.MetricType_GAUGE:
				w.data.add(w.now, family.GetName(), metric.GetGauge().GetValue(), metric.GetLabel())
			}
		}
	}
	w.data.stale(w.now)
	for _, rule := range rules() {
		query, err := w.engine.NewInstantQuery(context.Background(), &w.data, nil, rule.Expr.Value, w.now)
		w.must(err)
		result := query.Exec(context.Background())
		w.must(result.Err)
		vector, err := result.Vector()
		w.must(err)
		name := rule.Alert.Value
		if _, holds := w.since[name]; len(vector) == 0 {
			delete(w.since, name)
		} else if !holds {
			w.since[name] = w.now
		}
		query.Close()
	}
}

// fires tells whether an alert has held for as long as its rule wants.
func (w *world) fires(alert string) bool {
	w.Helper()
	for _, rule := range rules() {
		if rule.Alert.Value == alert {
			since, holds := w.since[alert]
			return holds && w.now.Sub(since) >= time.Duration(rule.For)
		}
	}
	w.Fatalf("there is no alert %s", alert)
	return false
}

// expect steps until an alert fires (or no longer does), at most so often. Each step does its work
// first.
func (w *world) expect(alert string, fires bool, by time.Duration, most int, work func()) {
	w.Helper()
	for i := 0; i < most; i++ {
		if work != nil {
			work()
		}
		w.step(by)
		if w.fires(alert) == fires {
			if !fires {
				tested[alert] = true
			}
			return
		}
	}
	var dump bytes.Buffer
	for id, points := range w.data.points {
		if strings.Contains(id, "walrusds_") {
			fmt.Fprintf(&dump, "%s %v\n", id, points[len(points)-1].F())
		}
	}
	w.Fatalf("%s: firing is not %v after %d steps of %v:\n%s", alert, fires, most, by, &dump)
}

var internal = map[string]any{"type": "internal"}

func TestNothingFiresWhenAllIsWell(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{
		"journalPath": "journal", "packIdleFlushSeconds": 1, "epochs": 20,
		"epochDurationSeconds": 86400, "renewIntervalSeconds": 1, "renewLeadSeconds": 86400,
	})
	w.must(w.put("/a", 1000))
	w.until("the block is on Walrus and in the ledger's figures", func() bool {
		return w.value("walrusds_journal_blocks") == 0 && w.value("walrusds_ledger_blobs") == 1
	})
	for i := 0; i < 40; i++ {
		w.must(w.get("/a"))
		w.step(time.Minute)
		for _, rule := range rules() {
			if w.fires(rule.Alert.Value) {
				t.Fatalf("%s fires", rule.Alert.Value)
			}
		}
	}
}

func TestUploadsFailAndTheJournalGrowsOld(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{"journalPath": "journal", "packIdleFlushSeconds": 1, "drainTimeoutSeconds": 0})
	w.fault(internal, "put")
	w.must(w.put("/a", 1000))
	w.until("an upload fails", func() bool { return w.value("walrusds_journal_failures_in_row") > 0 })
	w.expect("WalrusdsUploadsFail", true, time.Minute, 15, nil)
	w.expect("WalrusdsJournalOld", true, time.Minute, 40, nil)
	w.cured()
	w.until("the journal is empty", func() bool { return w.value("walrusds_journal_blocks") == 0 })
	w.expect("WalrusdsUploadsFail", false, time.Minute, 1, nil)
	w.expect("WalrusdsJournalOld", false, time.Minute, 1, nil)
}

func TestUploadsFailWithoutAJournal(t *testing.T) {
	w := newWorld(t)
	w.open(nil)
	w.fault(internal, "put")
	w.step(time.Minute)
	w.expect("WalrusdsUploadsFail", true, time.Minute, 20, func() {
		if w.put("/a", 1000) == nil {
			t.Fatal("stored in spite of the fault")
		}
	})
	w.cured()
	w.expect("WalrusdsUploadsFail", false, time.Minute, 2, func() { w.must(w.put("/a", 1000)) })
}

func TestTheJournalIsFull(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{
		"journalPath": "journal", "journalMaxBytes": 8 << 20, "packIdleFlushSeconds": 1,
		"drainTimeoutSeconds": 0,
	})
	w.fault(internal, "put")
	done := make(chan error, 40)
	for i := 0; i < 40; i++ {
		go func() { done <- w.put(fmt.Sprintf("/%d", i), 1<<20) }()
	}
	w.until("writes wait", func() bool { return w.value("walrusds_journal_waiting_writes") > 0 })
	w.expect("WalrusdsJournalFull", true, time.Minute, 5, nil)
	w.cured()
	for i := 0; i < 40; i++ {
		w.must(<-done)
	}
	w.expect("WalrusdsJournalFull", false, time.Minute, 1, nil)
}

func TestTheWalletIsEmpty(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{"journalPath": "journal", "packIdleFlushSeconds": 1, "drainTimeoutSeconds": 0})
	words := `{"error":{"status":"INTERNAL","code":500,"message":"could not find WAL coins with sufficient balance [requested_amount=Some(38850000)]","details":[]}}`
	w.fault(map[string]any{"type": "status", "status": 500, "body": words, "content_type": "application/json"}, "put")
	w.must(w.put("/a", 1000))
	w.until("the publisher has answered", func() bool { return w.value("walrusds_publisher_wallet_empty") == 1 })
	w.expect("WalrusdsWalletEmpty", true, time.Minute, 3, nil)
	w.cured()
	w.until("the journal is empty", func() bool { return w.value("walrusds_journal_blocks") == 0 })
	w.expect("WalrusdsWalletEmpty", false, time.Minute, 1, nil)
}

func TestAnAggregatorIsBadAndReadsFail(t *testing.T) {
	w := newWorld(t)
	w.open(nil)
	w.must(w.put("/a", 1000))
	w.must(w.get("/a"))
	w.step(time.Minute)
	w.fault(internal, "get", "range", "byte_range")
	fail := func() {
		if w.get("/a") == nil {
			t.Fatal("read in spite of the fault")
		}
	}
	w.expect("WalrusdsAggregatorBad", true, time.Minute, 10, fail)
	w.expect("WalrusdsReadsFail", true, time.Minute, 10, fail)
	w.cured()
	well := func() { w.must(w.get("/a")) }
	w.expect("WalrusdsAggregatorBad", false, time.Minute, 20, well)
	w.expect("WalrusdsReadsFail", false, time.Minute, 20, well)
}

func TestAnAggregatorSendsWrongBytes(t *testing.T) {
	w := newWorld(t)
	w.open(nil)
	// The key names its content, so that the bytes can be judged.
	key, value := named(1000)
	w.must(w.d.Put(context.Background(), ds.RawKey(key), value))
	w.must(w.get(key))
	w.step(time.Minute)
	w.fault(map[string]any{"type": "corrupt", "offset": 0}, "get", "range", "byte_range")
	w.expect("WalrusdsWrongBytes", true, time.Minute, 3, func() {
		if w.get(key) == nil {
			t.Fatal("read in spite of the fault")
		}
	})
	w.cured()
	w.expect("WalrusdsWrongBytes", false, time.Minute, 70, func() { w.must(w.get(key)) })
}

func TestDataWillLapse(t *testing.T) {
	w := newWorld(t)
	short := map[string]any{"epochs": 3, "epochDurationSeconds": 86400}
	w.open(short)
	w.must(w.put("/a", 1000))
	w.open(short) // a node that renews nothing looks at the ledger when it starts
	w.must(w.put("/b", 1000))
	w.until("the ledger was read", func() bool { return w.value("walrusds_next_expiry_timestamp_seconds") > 0 })
	w.expect("WalrusdsDataWillLapse", true, time.Minute, 10, nil)
	w.open(map[string]any{
		"epochs": 40, "epochDurationSeconds": 86400, "renewIntervalSeconds": 1, "renewLeadSeconds": 8 * 86400,
	})
	w.until("the blobs were renewed", func() bool { return w.value("walrusds_renewals_total") == 2 })
	soon := float64(time.Now().Add(30 * day).Unix())
	w.until("the ledger tells it", func() bool { return w.value("walrusds_next_expiry_timestamp_seconds") > soon })
	w.expect("WalrusdsDataWillLapse", false, 10*time.Minute, 2, nil)
}

func TestDataHasLapsed(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{
		"epochs": 2, "epochDurationSeconds": 86400, "renewIntervalSeconds": 1, "renewLeadSeconds": 4,
	})
	w.must(w.put("/lapses", 1000))
	w.until("the ledger was read", func() bool { return w.value("walrusds_ledger_blobs") == 1 })
	w.admin("POST", "epoch/advance?by=3", "")
	// The answers to stores tell the epoch. One alone is not believed when it is so far ahead.
	n := 0
	w.until("the lapse is noticed", func() bool {
		n++
		w.must(w.put(fmt.Sprintf("/new%d", n), 1000))
		return w.value("walrusds_ended_blobs") == 1
	})
	w.expect("WalrusdsDataHasLapsed", true, time.Minute, 10, nil)
	w.delete("/lapses")
	w.until("the ledger has forgotten the blob", func() bool { return w.value("walrusds_ended_blobs") == 0 })
	w.expect("WalrusdsDataHasLapsed", false, time.Minute, 1, nil)
}

func TestRenewalsFail(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{"epochs": 2, "epochDurationSeconds": 86400})
	w.must(w.put("/a", 1000))
	// What is put is due at once.
	w.open(map[string]any{
		"epochs": 20, "epochDurationSeconds": 86400, "renewIntervalSeconds": 1, "renewLeadSeconds": 30 * 86400,
	})
	w.step(time.Minute)
	fail := func() {
		n := w.value("walrusds_renewals_failed_total")
		w.cured()
		w.must(w.put(fmt.Sprintf("/%v", n), 1000))
		w.fault(internal, "put")
		w.until("a renewal fails", func() bool { return w.value("walrusds_renewals_failed_total") > n })
	}
	// One failure, which passes.
	fail()
	for i := 0; i < 5; i++ {
		w.step(30 * time.Minute)
		if w.fires("WalrusdsRenewalsFail") {
			t.Fatal("it fires for one failure")
		}
	}
	w.expect("WalrusdsRenewalsFail", true, 30*time.Minute, 8, fail)
	w.cured()
	w.until("the blob was renewed", func() bool { return w.value("walrusds_renewals_total") > 0 })
	w.expect("WalrusdsRenewalsFail", false, 5*time.Minute, 60, nil)
}

func TestWaste(t *testing.T) {
	w := newWorld(t)
	w.open(map[string]any{
		"epochs": 20, "epochDurationSeconds": 86400, "renewIntervalSeconds": 1, "renewLeadSeconds": 4,
	})
	batch, err := w.d.Batch(context.Background())
	w.must(err)
	for i := 0; i < 10; i++ {
		value := make([]byte, 100_000)
		rand.Read(value)
		w.must(batch.Put(context.Background(), ds.RawKey(fmt.Sprintf("/%d", i)), value))
	}
	w.must(batch.Commit(context.Background()))
	for i := 1; i < 10; i++ {
		w.delete(fmt.Sprintf("/%d", i))
	}
	w.until("the blocks were counted", func() bool { return w.value("walrusds_ledger_waste_ratio") > 0.8 })
	w.expect("WalrusdsWaste", true, 4*time.Hour, 10, nil)
	w.delete("/0")
	w.until("the blob is released", func() bool { return w.value("walrusds_ledger_blobs") == 0 })
	w.expect("WalrusdsWaste", false, 10*time.Minute, 1, nil)
}
