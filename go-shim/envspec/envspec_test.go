package envspec

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

var urls = []string{"WALRUSDS_PUBLISHER_URL=http://p", "WALRUSDS_AGGREGATOR_URL=http://a"}

func TestVarName(t *testing.T) {
	for key, want := range map[string]string{
		"publisherURL":         "WALRUSDS_PUBLISHER_URL",
		"postgresURL":          "WALRUSDS_POSTGRES_URL",
		"table":                "WALRUSDS_TABLE",
		"nShards":              "WALRUSDS_N_SHARDS",
		"packTargetSizeBytes":  "WALRUSDS_PACK_TARGET_SIZE_BYTES",
		"maxOpenConns":         "WALRUSDS_MAX_OPEN_CONNS",
		"someURLPath":          "WALRUSDS_SOME_URL_PATH",
		"authTokenCommand":     "WALRUSDS_AUTH_TOKEN_COMMAND",
		"epochDurationSeconds": "WALRUSDS_EPOCH_DURATION_SECONDS",
	} {
		if got := VarName(key); got != want {
			t.Errorf("%s: %s, want %s", key, got, want)
		}
	}
}

func TestEveryKeyHasItsOwnVariable(t *testing.T) {
	keys, err := walrusds.ConfigKeys()
	if err != nil {
		t.Fatal(err)
	}
	seen := map[string]string{}
	for _, k := range keys {
		name := VarName(k.Key)
		if other, ok := seen[name]; ok {
			t.Errorf("%s and %s are both %s", other, k.Key, name)
		}
		seen[name] = k.Key
		switch k.Type {
		case "string", "integer", "number", "boolean":
		default:
			t.Errorf("%s has the type %q, which convert does not know", k.Key, k.Type)
		}
	}
}

func TestParse(t *testing.T) {
	secret := filepath.Join(t.TempDir(), "url")
	if err := os.WriteFile(secret, []byte("postgres://u:pw@h/db\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	v, err := Parse(append(urls, "WALRUSDS_EPOCHS= 5", "WALRUSDS_DELETABLE=Yes", "WALRUSDS_TABLE=", "PATH=/bin",
		"WALRUSDS_POSTGRES_URL_FILE="+secret, "WALRUSDS_TEST_ANYTHING=1"))
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{
		"publisherURL": "http://p", "aggregatorURL": "http://a", "epochs": int64(5), "deletable": true,
		"postgresURL": "postgres://u:pw@h/db",
	}
	if !reflect.DeepEqual(v.Spec, want) {
		t.Errorf("%v", v.Spec)
	}
	spec, err := v.New(t.TempDir())
	if err != nil || spec["type"] != "walrusds" || spec["indexPath"] != nil {
		t.Errorf("%v, %v", spec, err)
	}
}

func TestNewDefaultsToAnEmbeddedIndex(t *testing.T) {
	v, err := Parse(urls)
	if err != nil {
		t.Fatal(err)
	}
	spec, err := v.New(t.TempDir())
	if err != nil || spec["indexPath"] != DefaultIndexPath {
		t.Errorf("%v, %v", spec, err)
	}
}

func TestTheJournalIsOnUnlessItIsOff(t *testing.T) {
	for _, c := range []struct {
		env                 []string
		path, drainsPartial any
	}{
		{nil, DefaultJournalPath, false},
		{[]string{"WALRUSDS_JOURNAL_PATH="}, DefaultJournalPath, false},
		{[]string{"WALRUSDS_JOURNAL_PATH=/fast/journal"}, "/fast/journal", false},
		{[]string{"WALRUSDS_DRAIN_PARTIAL_PACKS=true"}, DefaultJournalPath, true},
		{[]string{"WALRUSDS_JOURNAL_PATH=off"}, nil, nil},
	} {
		v, err := Parse(append(c.env, urls...))
		if err != nil {
			t.Fatal(err)
		}
		spec, err := v.New(t.TempDir())
		if err != nil || spec["journalPath"] != c.path || spec["drainPartialPacks"] != c.drainsPartial {
			t.Errorf("%v: %v, %v", c.env, spec, err)
		}
	}
	v, err := Parse([]string{"WALRUSDS_JOURNAL_PATH=off"})
	if err != nil {
		t.Fatal(err)
	}
	old := map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i", "journalPath": "j"}
	spec, err := v.Update(old)
	if _, on := spec["journalPath"]; err != nil || on {
		t.Errorf("%v, %v", spec, err)
	}
	v, _ = Parse(nil)
	delete(old, "journalPath")
	if spec, err = v.Update(old); err != nil || spec["journalPath"] != nil {
		t.Errorf("an existing repo got a journal unasked: %v, %v", spec, err)
	}
}

func TestWhatIsStoredIsRenewed(t *testing.T) {
	const week = "WALRUSDS_EPOCH_DURATION_SECONDS=604800"
	for _, c := range []struct {
		env                       []string
		network, epochs, interval any
	}{
		{nil, "mainnet", int64(26), int64(3600)},
		{[]string{"WALRUSDS_PUBLISHER_URL=https://publisher.Walrus-Testnet.example"}, "testnet", int64(14), int64(3600)},
		{[]string{"WALRUSDS_NETWORK=testnet", "WALRUSDS_EPOCHS=30"}, "testnet", int64(30), int64(3600)},
		{[]string{`WALRUSDS_NETWORK={"epochDurationSeconds":600}`}, `{"epochDurationSeconds":600}`, int64(14), int64(3600)},
		{[]string{week, "WALRUSDS_RENEW_INTERVAL_SECONDS=60"}, nil, int64(14), int64(60)},
		{[]string{"WALRUSDS_EPOCH_DURATION_SECONDS=0"}, nil, int64(14), nil},
		{[]string{"WALRUSDS_RENEW_INTERVAL_SECONDS=0"}, "mainnet", int64(26), int64(0)},
		{[]string{"WALRUSDS_DISABLE_FLUSH=true"}, "mainnet", int64(26), nil},
	} {
		env := urls
		if len(c.env) > 0 && strings.HasPrefix(c.env[0], "WALRUSDS_PUBLISHER_URL") {
			env = urls[1:]
		}
		v, err := Parse(append(c.env, env...))
		if err != nil {
			t.Fatal(err)
		}
		spec, err := v.New(t.TempDir())
		if spec["keepDeletedSeconds"] != int64(604800) {
			t.Errorf("%v: deleted blocks are kept for %v s", c.env, spec["keepDeletedSeconds"])
		}
		if err != nil || spec["network"] != c.network || spec["epochs"] != c.epochs || spec["renewIntervalSeconds"] != c.interval {
			t.Errorf("%v: %v, %v", c.env, spec, err)
		}
	}
	v, _ := Parse(append([]string{"WALRUSDS_KEEP_DELETED_SECONDS=0"}, urls...))
	if spec, err := v.New(t.TempDir()); err != nil || spec["keepDeletedSeconds"] != int64(0) {
		t.Errorf("undo cannot be switched off: %v, %v", spec, err)
	}
	v, _ = Parse(nil)
	old := map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i"}
	if spec, err := v.Update(old); err != nil || len(spec) != len(old) {
		t.Errorf("an existing repo got other lifetimes unasked: %v, %v", spec, err)
	}
}

func TestErrorsNameTheVariableAndNoSecret(t *testing.T) {
	for _, c := range []struct {
		env  string
		want []string
	}{
		{"WALRUSDS_EPOCHS=many", []string{"WALRUSDS_EPOCHS", `"many"`, "whole number"}},
		{"WALRUSDS_EPOCHS=1.5", []string{"WALRUSDS_EPOCHS"}},
		{"WALRUSDS_EPOCHS=99", []string{"WALRUSDS_EPOCHS", "99"}},
		{"WALRUSDS_DELETABLE=maybe", []string{"WALRUSDS_DELETABLE", "true nor false"}},
		{"WALRUSDS_PUBLISHR_URL=x", []string{"WALRUSDS_PUBLISHR_URL", "WALRUSDS_PUBLISHER_URL"}},
		{"WALRUSDS_TABLE=a-b", []string{"WALRUSDS_TABLE"}},
		{"WALRUSDS_POSTGRES_URL_FILE=/does/not/exist", []string{"WALRUSDS_POSTGRES_URL_FILE", "no such file"}},
		{"WALRUSDS_POSTGRES_URL=postgres://u:hunter2@h/db", []string{"WALRUSDS_POSTGRES_URL", "WALRUSDS_INDEX_PATH"}},
	} {
		env := append([]string{c.env, "WALRUSDS_INDEX_PATH=i.sqlite"}, urls...)
		v, err := Parse(env)
		if err == nil {
			_, err = v.New(t.TempDir())
		}
		if err == nil {
			t.Errorf("%s: no error", c.env)
			continue
		}
		for _, w := range append(c.want, "walrusds") {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: %v (without %q)", c.env, err, w)
			}
		}
		if strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: %v", c.env, err)
		}
	}
	v, err := Parse(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := v.New(t.TempDir()); err == nil || !strings.Contains(err.Error(), "WALRUSDS_PUBLISHER_URL and WALRUSDS_AGGREGATOR_URL") {
		t.Errorf("nothing set: %v", err)
	}
}

func TestUpdate(t *testing.T) {
	old := map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "indexPath": "i.sqlite", "epochs": float64(3)}
	v, err := Parse([]string{"WALRUSDS_POSTGRES_URL=postgres://u@h/db", "WALRUSDS_WORKERS=7"})
	if err != nil {
		t.Fatal(err)
	}
	spec, err := v.Update(old)
	if err != nil {
		t.Fatal(err)
	}
	want := map[string]any{"type": "walrusds", "publisherURL": "http://p", "aggregatorURL": "http://a", "postgresURL": "postgres://u@h/db", "epochs": float64(3), "workers": int64(7)}
	if !reflect.DeepEqual(spec, want) {
		t.Errorf("%v", spec)
	}
	if old["indexPath"] != "i.sqlite" {
		t.Error("Update changed what it was given")
	}
}

// Kubernetes puts these into every container of a namespace that has a service called walrusds.
func TestServiceLinksAreNoSettings(t *testing.T) {
	environ := []string{
		"WALRUSDS_SERVICE_HOST=10.0.0.1", "WALRUSDS_SERVICE_PORT=8080", "WALRUSDS_SERVICE_PORT_GATEWAY=8080",
		"WALRUSDS_PORT=tcp://10.0.0.1:8080", "WALRUSDS_PORT_8080_TCP=tcp://10.0.0.1:8080",
		"WALRUSDS_PORT_8080_TCP_PROTO=tcp", "WALRUSDS_PORT_8080_TCP_PORT=8080", "WALRUSDS_PORT_8080_TCP_ADDR=10.0.0.1",
		"WALRUSDS_GATEWAY_PORT=tcp://10.0.0.2:80", "WALRUSDS_GATEWAY_SERVICE_HOST=10.0.0.2",
		"WALRUSDS_NAME=/web/walrusds", "WALRUSDS_ENV_PATH=/bin", "WALRUSDS_GATEWAY_NAME=/web/gateway",
		"WALRUSDS_EPOCHS=5",
	}
	v, err := Parse(environ)
	if err != nil {
		t.Fatal(err)
	}
	if len(v.Spec) != 1 || v.Spec["epochs"] != int64(5) {
		t.Errorf("%v", v.Spec)
	}
	for _, misspelt := range []string{"WALRUSDS_PORTS=1", "WALRUSDS_TABLE_NAME=t"} {
		if _, err := Parse([]string{misspelt}); err == nil {
			t.Errorf("%s was accepted", misspelt)
		}
	}
}
