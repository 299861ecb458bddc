package walrusds

import (
	"encoding/json"
	"sync"
	"time"
)

// logInterval is how often the engine's messages are fetched: it writes no log itself, and asking
// costs less than a microsecond.
const logInterval = 250 * time.Millisecond

// logPump carries the engine's messages over to go-log, with the table as a field: a process may
// have several datastores. It knows the engine only, never the Datastore, so that a forgotten
// Datastore can be noticed by its finalizer.
type logPump struct {
	table   string
	quit    chan struct{}
	stopped sync.WaitGroup
}

func (p *logPump) start(e *engine) {
	p.quit = make(chan struct{})
	p.stopped.Add(1)
	go func() {
		defer p.stopped.Done()
		tick := time.NewTicker(logInterval)
		defer tick.Stop()
		for {
			e.drainLogs()
			spans.replay()
			select {
			case <-tick.C:
			case <-p.quit:
				return
			}
		}
	}()
}

func (p *logPump) stop() {
	close(p.quit)
	p.stopped.Wait()
}

// emit passes a message on at its level. Kubo shows errors unless told otherwise.
func (p *logPump) emit(raw []byte) {
	var line struct {
		Level   string `json:"level"`
		Message string `json:"message"`
		About   string `json:"about"`
	}
	if err := json.Unmarshal(raw, &line); err != nil {
		log.Warnf("unreadable log line from the engine: %v", err)
		return
	}
	fields := []any{"table", p.table}
	if line.About != "" {
		fields = append(fields, "about", line.About)
	}
	switch line.Level {
	case "error":
		log.Errorw(line.Message, fields...)
	case "warn":
		log.Warnw(line.Message, fields...)
	case "info":
		log.Infow(line.Message, fields...)
	default:
		log.Debugw(line.Message, fields...)
	}
}
