package walrusds

import (
	"encoding/json"
	"sync"
	"time"
)

// logInterval is how often the engine's messages are fetched: it writes no log itself, and asking
// costs less than a microsecond.
const logInterval = 250 * time.Millisecond

// logPump carries the engine's messages over to go-log. It knows the engine only, never the
// Datastore, so that a forgotten Datastore can be noticed by its finalizer.
type logPump struct {
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

func emitLog(raw []byte) {
	var line struct {
		Level   string `json:"level"`
		Message string `json:"message"`
	}
	if err := json.Unmarshal(raw, &line); err != nil {
		log.Warnf("unreadable log line from the engine: %v", err)
		return
	}
	switch line.Level {
	case "error":
		log.Error(line.Message)
	case "warn":
		log.Warn(line.Message)
	case "info":
		log.Info(line.Message)
	default:
		log.Debug(line.Message)
	}
}
