// Package envspec builds a datastore configuration from environment variables: each key of the
// configuration is WALRUSDS_ and its name in SNAKE_CASE (publisherURL: WALRUSDS_PUBLISHER_URL).
// The value of a secret may be kept in a file instead, named by the variable with _FILE appended.
package envspec

import (
	"errors"
	"fmt"
	"math"
	"os"
	"regexp"
	"sort"
	"strconv"
	"strings"

	walrusds "github.com/walrusds/walrusds/go-shim"
)

// Prefix begins the name of every variable.
const Prefix = "WALRUSDS_"

// DefaultIndexPath is the index of a node that names none: an embedded one, inside the repo.
const DefaultIndexPath = "walrusds-index.sqlite"

// DefaultJournalPath is the write journal of a node that names none, inside the repo.
const DefaultJournalPath = "walrusds-journal"

// JournalOff as the value of WALRUSDS_JOURNAL_PATH means a node without a write journal.
const JournalOff = "off"

// reservedPrefix begins the variables that steer the project's own tests.
const reservedPrefix = "WALRUSDS_TEST_"

// VarName returns the variable for a configuration key.
func VarName(key string) string {
	var b strings.Builder
	b.WriteString(Prefix)
	upper := func(i int) bool { return i < len(key) && key[i] >= 'A' && key[i] <= 'Z' }
	lower := func(i int) bool { return i < len(key) && key[i] >= 'a' && key[i] <= 'z' }
	for i := 0; i < len(key); i++ {
		// A word begins where small letters end, and at the last capital of a row ("URLPath").
		if i > 0 && upper(i) && (!upper(i-1) || lower(i+1)) {
			b.WriteByte('_')
		}
		b.WriteString(strings.ToUpper(key[i : i+1]))
	}
	return b.String()
}

// Values are the settings found in an environment, by configuration key.
type Values struct {
	Spec map[string]any
	vars map[string]string // key: the variable it came from
}

// Parse converts the variables in environ ("NAME=value", as os.Environ gives them) to the types of
// their keys. An empty value counts as not set. Errors name the variable, never a secret's value.
func Parse(environ []string) (*Values, error) {
	keys, err := walrusds.ConfigKeys()
	if err != nil {
		return nil, err
	}
	return parse(environ, keys)
}

func parse(environ []string, keys []walrusds.ConfigKey) (*Values, error) {
	known := make(map[string]walrusds.ConfigKey, len(keys))
	files := make(map[string]walrusds.ConfigKey)
	for _, k := range keys {
		known[VarName(k.Key)] = k
	}
	for _, k := range keys {
		if name := VarName(k.Key) + "_FILE"; k.Secret {
			if _, taken := known[name]; !taken {
				files[name] = k
			}
		}
	}

	links := serviceLinks(environ)
	v := &Values{Spec: map[string]any{}, vars: map[string]string{}}
	var errs []error
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if !strings.HasPrefix(name, Prefix) || strings.HasPrefix(name, reservedPrefix) {
			continue
		}
		key, ok := known[name]
		if !ok && links.has(name) {
			continue
		}
		if !ok {
			if key, ok = files[name]; !ok {
				errs = append(errs, fmt.Errorf("%s is not a setting of walrusds; did you mean %s?", name, nearest(name, known)))
				continue
			}
			if value == "" {
				continue
			}
			raw, err := os.ReadFile(value)
			if err != nil {
				errs = append(errs, fmt.Errorf("%s: %w", name, err))
				continue
			}
			value = strings.TrimSpace(string(raw))
			if value == "" {
				errs = append(errs, fmt.Errorf("%s: the file is empty", name))
				continue
			}
		}
		if value == "" {
			continue
		}
		if other, twice := v.vars[key.Key]; twice {
			errs = append(errs, fmt.Errorf("%s and %s are both set: use one of them", other, name))
			continue
		}
		converted, err := convert(value, key)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", name, err))
			continue
		}
		v.Spec[key.Key] = converted
		v.vars[key.Key] = name
	}
	if len(errs) > 0 {
		sort.Slice(errs, func(i, j int) bool { return errs[i].Error() < errs[j].Error() })
		return nil, fmt.Errorf("walrusds: %w", errors.Join(errs...))
	}
	return v, nil
}

// serviceLink is what Kubernetes and Docker put into the environment of every container for a
// service or a linked container: of one called walrusds, or walrusds-something, it begins like our
// settings
// (https://kubernetes.io/docs/tutorials/services/connect-applications-service/#environment-variables).
var serviceLink = regexp.MustCompile(`_(SERVICE_HOST|SERVICE_PORT(_[A-Z0-9_]+)?|PORT(_[0-9]+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)$`)

// links holds what stands before _PORT in the name of a service link. Docker's links bring two more
// variables (https://docs.docker.com/engine/network/links/), whose names alone might be misspelt
// settings.
type links []string

func serviceLinks(environ []string) links {
	var found links
	for _, kv := range environ {
		name, value, _ := strings.Cut(kv, "=")
		if prefix, ok := strings.CutSuffix(name, "_PORT"); ok && strings.Contains(value, "://") {
			found = append(found, prefix)
		}
	}
	return found
}

func (l links) has(name string) bool {
	for _, prefix := range l {
		if name == prefix+"_NAME" || strings.HasPrefix(name, prefix+"_ENV_") {
			return true
		}
	}
	return serviceLink.MatchString(name)
}

func convert(value string, key walrusds.ConfigKey) (any, error) {
	shown := strconv.Quote(value)
	if key.Secret {
		shown = "the value"
	}
	switch key.Type {
	case "integer":
		if n, err := strconv.ParseInt(strings.TrimSpace(value), 10, 64); err == nil {
			return n, nil
		}
		return nil, fmt.Errorf("%s is not a whole number", shown)
	case "number":
		n, err := strconv.ParseFloat(strings.TrimSpace(value), 64)
		if err == nil && !math.IsNaN(n) && !math.IsInf(n, 0) {
			return n, nil
		}
		return nil, fmt.Errorf("%s is not a number", shown)
	case "boolean":
		switch strings.ToLower(strings.TrimSpace(value)) {
		case "true", "1", "yes", "on":
			return true, nil
		case "false", "0", "no", "off":
			return false, nil
		}
		return nil, fmt.Errorf("%s is neither true nor false", shown)
	default:
		return value, nil
	}
}

// New returns the configuration of a new repo: the environment's settings, an embedded index if the
// environment names none, a write journal and a read cache unless they are off, and renewal of what
// is stored (see lifetimes). repo is where the repo will be, for relative paths. It is validated in
// full.
//
// A journal that was not configured further keeps small packs at close: the node may be one that is
// used by one-shot commands only, and a blob for each of them would cost as much as a full one.
func (v *Values) New(repo string) (map[string]any, error) {
	return v.newSpec(repo, freeAt)
}

func (v *Values) newSpec(repo string, free func(path string) uint64) (map[string]any, error) {
	var missing []string
	for _, key := range []string{"publisherURL", "aggregatorURL"} {
		if _, ok := v.Spec[key]; !ok {
			missing = append(missing, VarName(key))
		}
	}
	if len(missing) > 0 {
		return nil, fmt.Errorf("walrusds: %s must be set to the base URL(s) of a Walrus publisher and aggregator", strings.Join(missing, " and "))
	}
	spec := map[string]any{"type": walrusds.TypeName}
	for k, value := range v.Spec {
		spec[k] = value
	}
	if spec["postgresURL"] == nil && spec["indexPath"] == nil {
		spec["indexPath"] = DefaultIndexPath
	}
	switch spec["journalPath"] {
	case JournalOff:
		delete(spec, "journalPath")
	case nil:
		spec["journalPath"] = DefaultJournalPath
	}
	if spec["journalPath"] != nil && spec["drainPartialPacks"] == nil {
		spec["drainPartialPacks"] = false
	}
	cache(spec, repo, free)
	lifetimes(spec)
	if _, err := walrusds.DiskSpec(spec); err != nil {
		return nil, v.explain(err)
	}
	return spec, nil
}

// lifetimes settles how long data lives where the environment does not say it, so that a node that is left
// alone loses nothing: the network, epochs enough to survive a long absence, renewal, and a week to undo a
// garbage collection.
//
// The network is Testnet if the publisher's URL says so, else Mainnet, where data is kept to last. For a
// Testnet node with a publisher of its own that is wrong, so the documents ask for WALRUSDS_NETWORK.
func lifetimes(spec map[string]any) {
	if spec["network"] == nil && spec["epochDurationSeconds"] == nil {
		spec["network"] = "mainnet"
		if url, _ := spec["publisherURL"].(string); strings.Contains(strings.ToLower(url), "testnet") {
			spec["network"] = "testnet"
		}
	}
	if spec["epochs"] == nil {
		spec["epochs"] = int64(14)
		if spec["network"] == "mainnet" {
			spec["epochs"] = int64(26) // a year
		}
	}
	unknown := spec["network"] == nil && spec["epochDurationSeconds"] == int64(0)
	if spec["renewIntervalSeconds"] == nil && spec["disableFlush"] != true && !unknown {
		spec["renewIntervalSeconds"] = int64(3600)
	}
	if spec["keepDeletedSeconds"] == nil {
		spec["keepDeletedSeconds"] = int64(7 * 86400)
	}
}

// Update returns the configuration of an existing repo with the environment's settings put over it;
// settings that the environment does not mention stay. Naming one kind of index drops the other.
func (v *Values) Update(old map[string]any) (map[string]any, error) {
	spec := make(map[string]any, len(old)+len(v.Spec))
	for k, value := range old {
		spec[k] = value
	}
	for k, value := range v.Spec {
		spec[k] = value
	}
	if v.Spec["postgresURL"] != nil && v.Spec["indexPath"] == nil {
		delete(spec, "indexPath")
	}
	if v.Spec["indexPath"] != nil && v.Spec["postgresURL"] == nil {
		delete(spec, "postgresURL")
	}
	if spec["journalPath"] == JournalOff {
		delete(spec, "journalPath")
	}
	if spec["cachePath"] == CacheOff {
		delete(spec, "cachePath")
	}
	if _, err := walrusds.DiskSpec(spec); err != nil {
		return nil, v.explain(err)
	}
	return spec, nil
}

// explain adds the variables behind the keys that an error of the engine mentions.
func (v *Values) explain(err error) error {
	var from []string
	for key, name := range v.vars {
		if regexp.MustCompile(`\b` + regexp.QuoteMeta(key) + `\b`).MatchString(err.Error()) {
			from = append(from, key+" is set by "+name)
		}
	}
	if len(from) == 0 {
		return err
	}
	sort.Strings(from)
	return fmt.Errorf("%w (%s)", err, strings.Join(from, "; "))
}

// nearest returns the known name with the smallest edit distance.
func nearest(name string, known map[string]walrusds.ConfigKey) string {
	best, least := "", math.MaxInt
	names := make([]string, 0, len(known))
	for n := range known {
		names = append(names, n)
	}
	sort.Strings(names)
	for _, n := range names {
		if d := distance(name, n); d < least {
			best, least = n, d
		}
	}
	return best
}

func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := diagonal
			if a[i-1] != b[j-1] {
				cost = 1 + min(diagonal, row[j], row[j-1])
			}
			diagonal, row[j] = row[j], cost
		}
	}
	return row[len(b)]
}
