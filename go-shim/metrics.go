package walrusds

import (
	"bytes"
	"fmt"
	"math"
	"strconv"
	"strings"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// defaultTable is the engine's name for the index where the configuration gives none.
const defaultTable = "walrus_index"

// metrics is the one collector of this process: it gives the metrics of all open datastores to
// Prometheus' default registry, which Kubo serves at /debug/metrics/prometheus.
//
// The registry answers a whole scrape with an error if two samples have the same name and labels.
// So the datastores have a label "table" while more than one is open, two of the same table are told
// apart by a number, and a sample that comes twice all the same is left out.
var metrics collector

// collector is registered once and stays: a collector that does not say beforehand what it collects
// cannot be unregistered. It is empty while no datastore is open.
type collector struct {
	register sync.Once

	mu   sync.Mutex
	open []metricsOf
}

// metricsOf knows the engine only, never the Datastore, so that a forgotten Datastore can be noticed
// by its finalizer.
type metricsOf struct {
	eng   *engine
	table string
}

// tableOf is the name of a configuration's index table.
func tableOf(spec map[string]any) string {
	if table, _ := spec["table"].(string); table != "" {
		return table
	}
	return defaultTable
}

// add begins to give the metrics of an open datastore.
func (c *collector) add(eng *engine, table string) {
	c.register.Do(func() {
		if err := prometheus.Register(c); err != nil {
			log.Warnf("walrusds is missing in /debug/metrics/prometheus: %v", err)
		}
	})
	c.mu.Lock()
	defer c.mu.Unlock()
	name := table
	for n := 2; c.has(name); n++ {
		name = fmt.Sprintf("%s#%d", table, n)
	}
	c.open = append(c.open, metricsOf{eng, name})
}

func (c *collector) has(table string) bool {
	for _, m := range c.open {
		if m.table == table {
			return true
		}
	}
	return false
}

// remove ends what add began. It must come before the engine is closed.
func (c *collector) remove(eng *engine) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var others []metricsOf
	for _, m := range c.open {
		if m.eng != eng {
			others = append(others, m)
		}
	}
	c.open = others
}

// Describe gives nothing: which labels there are is known when they are collected.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect asks each engine for its figures, which are in memory: it waits for nothing.
func (c *collector) Collect(to chan<- prometheus.Metric) {
	c.mu.Lock()
	open := c.open
	c.mu.Unlock()
	seen := make(map[string]bool)
	for _, m := range open {
		text, err := m.eng.openMetrics()
		if err != nil {
			continue // it was closed at this moment
		}
		table := ""
		if len(open) > 1 {
			table = m.table
		}
		err = readOpenMetrics(text, func(s *sample) error {
			if table != "" {
				s.labels = append(s.labels, "table")
				s.values = append(s.values, table)
			}
			id := s.name + "\x00" + strings.Join(s.values, "\x00")
			if seen[id] {
				return nil
			}
			seen[id] = true
			metric, err := s.metric()
			if err == nil {
				to <- metric
			}
			return err
		})
		if err != nil {
			log.Warnf("metrics of the engine that cannot be read: %v", err)
		}
	}
}

// sample is a metric's value for one set of labels.
type sample struct {
	name, kind, help string
	labels, values   []string
	number           float64
	// Of a histogram: the sums up to the ends of the buckets, and of all values.
	buckets map[float64]uint64
	count   uint64
}

func (s *sample) metric() (prometheus.Metric, error) {
	desc := prometheus.NewDesc(s.name, s.help, s.labels, nil)
	switch s.kind {
	case "histogram":
		return prometheus.NewConstHistogram(desc, s.count, s.number, s.buckets, s.values...)
	case "counter":
		return prometheus.NewConstMetric(desc, prometheus.CounterValue, s.number, s.values...)
	default:
		return prometheus.NewConstMetric(desc, prometheus.GaugeValue, s.number, s.values...)
	}
}

// readOpenMetrics hands over the samples of a text of the engine. It reads what the engine writes
// and no more of the format: a family's TYPE and HELP come before its lines, a line has no time,
// and the lines of a histogram come together, its number of values last.
func readOpenMetrics(text []byte, each func(*sample) error) error {
	var family, kind, help string
	var histogram *sample
	for len(text) > 0 {
		line, rest, _ := bytes.Cut(text, []byte("\n"))
		text = rest
		if word, name, said, ok := comment(string(line)); ok {
			switch word {
			case "TYPE":
				family, kind, help = name, said, ""
			case "HELP":
				help = unescaped(said)
			}
			continue
		}
		name, labels, values, number, err := readLine(string(line))
		if err != nil {
			return err
		}
		ending, ok := strings.CutPrefix(name, family)
		if family == "" || !ok {
			return fmt.Errorf("%q outside of its family %q", name, family)
		}
		if kind != "histogram" {
			s := &sample{name: name, kind: kind, help: help, labels: labels, values: values, number: number}
			if err := each(s); err != nil {
				return err
			}
			continue
		}
		if histogram == nil {
			histogram = &sample{name: family, kind: kind, help: help, buckets: make(map[float64]uint64)}
		}
		switch ending {
		case "_bucket":
			last := len(labels) - 1
			if last < 0 || labels[last] != "le" {
				return fmt.Errorf("%q without an end", line)
			}
			end, err := strconv.ParseFloat(values[last], 64)
			if err != nil {
				return err
			}
			if !math.IsInf(end, 1) {
				histogram.buckets[end] = uint64(number)
			}
		case "_sum":
			histogram.number = number
		case "_count":
			histogram.count, histogram.labels, histogram.values = uint64(number), labels, values
			if err := each(histogram); err != nil {
				return err
			}
			histogram = nil
		default:
			return fmt.Errorf("%q is no line of a histogram", name)
		}
	}
	return nil
}

// comment takes "# WORD name text" apart.
func comment(line string) (word, name, said string, ok bool) {
	line, ok = strings.CutPrefix(line, "# ")
	word, line, _ = strings.Cut(line, " ")
	name, said, _ = strings.Cut(line, " ")
	return word, name, said, ok
}

// readLine takes `name{label="value",…} number` apart.
func readLine(line string) (name string, labels, values []string, number float64, err error) {
	wrong := fmt.Errorf("unreadable line %q", line)
	at := strings.IndexAny(line, "{ ")
	if at < 0 {
		return "", nil, nil, 0, wrong
	}
	name, rest := line[:at], line[at:]
	for strings.HasPrefix(rest, "{") || strings.HasPrefix(rest, ",") {
		label, quoted, ok := strings.Cut(rest[1:], "=\"")
		end := quoteEnd(quoted)
		if !ok || end < 0 {
			return "", nil, nil, 0, wrong
		}
		labels = append(labels, label)
		values = append(values, unescaped(quoted[:end]))
		rest = quoted[end+1:]
	}
	rest = strings.TrimPrefix(rest, "}")
	number, err = strconv.ParseFloat(strings.TrimPrefix(rest, " "), 64)
	if err != nil {
		err = wrong
	}
	return name, labels, values, number, err
}

// quoteEnd returns the place of the quote that ends a value, or -1.
func quoteEnd(text string) int {
	for i := 0; i < len(text); i++ {
		switch text[i] {
		case '\\':
			i++
		case '"':
			return i
		}
	}
	return -1
}

var escapes = strings.NewReplacer(`\\`, `\`, `\"`, `"`, `\n`, "\n")

func unescaped(text string) string { return escapes.Replace(text) }
