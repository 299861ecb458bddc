package walrusds

import (
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// runDevnet starts a local Walrus in memory, on a free port.
func runDevnet(program string) (func(), error) {
	dir, err := os.MkdirTemp("", "walrusds-test")
	if err != nil {
		return nil, err
	}
	portFile := filepath.Join(dir, "port")
	cmd := exec.Command(program, "--listen", "127.0.0.1:0", "--port-file", portFile, "--memory", "--cheap-ids", "--quiet")
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		os.RemoveAll(dir)
		return nil, err
	}
	stop := func() {
		cmd.Process.Kill()
		cmd.Wait()
		os.RemoveAll(dir)
	}
	for end := time.Now().Add(patience); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if port, err := os.ReadFile(portFile); err == nil && len(port) > 0 {
			walrusURL = "http://127.0.0.1:" + strings.TrimSpace(string(port))
			return stop, nil
		}
	}
	stop()
	return nil, fmt.Errorf("%s did not come up", program)
}

// newSilentServer accepts connections and never answers.
func newSilentServer(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		var conns []net.Conn
		defer func() {
			for _, c := range conns {
				c.Close()
			}
		}()
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			conns = append(conns, c)
		}
	}()
	return "http://" + l.Addr().String()
}

// newRefusingPublisher answers every store with 402.
func newRefusingPublisher(t *testing.T) string {
	refusing := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "the publisher is out of money", http.StatusPaymentRequired)
	}))
	t.Cleanup(refusing.Close)
	return refusing.URL
}
