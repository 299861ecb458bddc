// Command bench-ds measures walrusds as a datastore, through the Go shim and without Kubo: how many
// calls a second, how long each takes, what CPU time this process uses for it (on a machine that is
// busy with other things the one figure that stays comparable), and how many threads it has
// meanwhile.
//
// scripts/bench-ds.sh starts the servers and runs it.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"time"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

type options struct {
	walrus   string
	postgres string
	only     *regexp.Regexp
	counts   []int
	duration time.Duration
	rows     int
	deletes  int
	json     bool
}

func main() {
	var o options
	var only, counts, indexes string
	flag.StringVar(&o.walrus, "walrus", "", "URL of a publisher and aggregator")
	flag.StringVar(&o.postgres, "postgres", "", "URL of a Postgres server")
	flag.StringVar(&indexes, "index", "postgres,sqlite", "which indexes")
	flag.StringVar(&only, "only", "", "only measurements whose name matches this expression")
	flag.StringVar(&counts, "goroutines", "1,16,128", "with how many goroutines")
	flag.DurationVar(&o.duration, "for", 2*time.Second, "how long each measurement of single calls runs")
	flag.IntVar(&o.rows, "rows", 1_000_000, "rows that a query lists")
	flag.IntVar(&o.deletes, "deletes", 100_000, "keys that are deleted")
	flag.BoolVar(&o.json, "json", false, "a JSON object per line instead of a Markdown table")
	flag.Parse()

	var err error
	if o.only, err = regexp.Compile(only); err != nil {
		fail(err)
	}
	for _, c := range strings.Split(counts, ",") {
		n, err := strconv.Atoi(c)
		if err != nil || n < 1 {
			fail(fmt.Errorf("-goroutines: %q is no number of goroutines", c))
		}
		o.counts = append(o.counts, n)
	}
	if !o.json {
		fmt.Printf("%s, %d cores\n\n", runtime.Version(), runtime.NumCPU())
		fmt.Println("| index | call | goroutines | calls/s | CPU a call | p50 | p99 | threads |")
		fmt.Println("|---|---|---:|---:|---:|---:|---:|---:|")
	}
	for _, index := range strings.Split(indexes, ",") {
		if err := bench(o, index); err != nil {
			fail(err)
		}
	}
}

func fail(err error) {
	fmt.Fprintln(os.Stderr, "bench-ds:", err)
	os.Exit(1)
}

// bench runs every measurement on one kind of index.
func bench(o options, index string) error {
	dir, err := os.MkdirTemp("", "bench-ds")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	spec := map[string]any{
		"publisherURL":  o.walrus,
		"aggregatorURL": o.walrus,
		"table":         fmt.Sprintf("bench_%d_%d", os.Getpid(), time.Now().UnixNano()),
		"journalPath":   "journal",
	}
	switch index {
	case "postgres":
		if o.postgres == "" {
			return fmt.Errorf("-postgres is needed")
		}
		spec["postgresURL"] = o.postgres
	case "sqlite":
		spec["indexPath"] = "index.sqlite"
	default:
		return fmt.Errorf("-index: %q is neither postgres nor sqlite", index)
	}
	d, err := walrusds.Open(spec, dir)
	if err != nil {
		return err
	}
	b := &run{options: o, index: index, d: d, ctx: context.Background()}
	err = b.everything(func() error {
		// Close empties the journal, so the measurement covers the indexed blocks only.
		if err := b.d.Close(); err != nil {
			return err
		}
		b.d, err = walrusds.Open(spec, dir)
		return err
	})
	if cerr := b.d.Close(); err == nil {
		err = cerr
	}
	return err
}

// row is one line of the table.
type row struct {
	Index      string  `json:"index"`
	Call       string  `json:"call"`
	Goroutines int     `json:"goroutines"`
	Rate       float64 `json:"calls_per_second"`
	CPU        float64 `json:"cpu_us_per_call"`
	P50        float64 `json:"p50_us"`
	P99        float64 `json:"p99_us"`
	Threads    int     `json:"threads"`
}

func (r row) print(asJSON bool) {
	if asJSON {
		line, err := json.Marshal(r)
		if err != nil {
			fail(err)
		}
		fmt.Println(string(line))
		return
	}
	fmt.Printf("| %s | %s | %d | %s | %s | %s | %s | %d |\n", r.Index, r.Call, r.Goroutines, number(r.Rate), micros(r.CPU), micros(r.P50), micros(r.P99), r.Threads)
}

func number(f float64) string {
	if f < 100 {
		return strconv.FormatFloat(f, 'g', 3, 64)
	}
	s := strconv.FormatFloat(f, 'f', 0, 64)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}

func micros(us float64) string {
	return time.Duration(us * 1000).Round(10 * time.Nanosecond).String()
}
