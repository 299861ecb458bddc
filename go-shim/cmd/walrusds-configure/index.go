package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"strings"
)

// checkIndex fails if the new settings lead to an index that does not have the blocks of the old
// one, as far as files and URLs tell: the node would start on an empty index, find no block, and
// renew none of their blobs. It names no user, password or host.
func checkIndex(repo string, old, updated map[string]any) error {
	before, after := indexOf(repo, old), indexOf(repo, updated)
	if before == after || after.exists() {
		return nil
	}
	switch {
	case before.file != "" && !before.exists():
		// No node has used it yet, or it was moved away on purpose.
		return nil
	case before.file == "" && before.database == "":
		return nil
	}
	return fmt.Errorf("the index of this repo is %s, and the variables name %s: with a new index the node finds none of its blocks, and "+
		"their blobs are no longer renewed.\nRestore the old value; or copy the index there first (docs/growing-the-index.md), and "+
		"then run walrusds-configure -other-index once, or change Datastore.Spec by ipfs config", before, after)
}

// index is where an index lies: a file, or a database.
type index struct{ file, database string }

func indexOf(repo string, spec map[string]any) index {
	if path, _ := spec["indexPath"].(string); path != "" {
		if !filepath.IsAbs(path) {
			path = filepath.Join(repo, path)
		}
		return index{file: filepath.Clean(path)}
	}
	text, _ := spec["postgresURL"].(string)
	if text == "" {
		return index{}
	}
	scheme, rest, _ := strings.Cut(text, "://")
	if scheme != "postgres" && scheme != "postgresql" {
		// keyword=value, as libpq takes it, with the password in it.
		return index{database: keyword(text, "dbname", "user")}
	}
	// The host may be the path of a socket, which url.Parse does not take. It does not matter here.
	authority, path, _ := strings.Cut(rest, "/")
	user := ""
	if at := strings.LastIndex(authority, "@"); at >= 0 {
		user, _, _ = strings.Cut(authority[:at], ":")
		user += "@"
	}
	parsed, err := url.Parse("postgres://" + user + "h/" + path)
	if err != nil {
		// The engine has taken it. Its parts are not known here, and all such URLs count as one.
		return index{database: "?"}
	}
	name := strings.Trim(parsed.Path, "/")
	if given := parsed.Query().Get("dbname"); given != "" {
		name = given
	}
	if name == "" {
		// As libpq has it.
		name = parsed.User.Username()
	}
	if name == "" {
		name = "?"
	}
	return index{database: name}
}

// keyword gives the first of these that a keyword=value string has; "?" if it has none, or is quoted
// in a way that only the engine understands.
func keyword(text string, names ...string) string {
	if strings.ContainsAny(text, `'\\`) {
		return "?"
	}
	values := map[string]string{}
	for _, field := range strings.Fields(text) {
		if name, value, ok := strings.Cut(field, "="); ok {
			values[name] = value
		}
	}
	for _, name := range names {
		if values[name] != "" {
			return values[name]
		}
	}
	return "?"
}

// exists tells whether the file of an index is there. Of a database it is not known.
func (i index) exists() bool {
	if i.file == "" {
		return false
	}
	_, err := os.Stat(i.file)
	return !errors.Is(err, fs.ErrNotExist)
}

func (i index) String() string {
	switch {
	case i.file != "":
		return "the file " + i.file + " (indexPath)"
	case i.database == "?":
		return "in PostgreSQL (postgresURL)"
	default:
		return fmt.Sprintf("in PostgreSQL, in the database %q (postgresURL)", i.database)
	}
}
