package walrusds

import (
	"reflect"
	"testing"

	dsq "github.com/ipfs/go-datastore/query"
)

// TestSplit checks which parts of a query go to the engine and which remain for the shim.
func TestSplit(t *testing.T) {
	byValue := []dsq.Order{dsq.OrderByValue{}, dsq.OrderByKey{}}
	value := dsq.FilterValueCompare{Op: dsq.Equal, Value: []byte("v")}
	below := dsq.FilterKeyCompare{Op: dsq.LessThan, Key: "/k"}
	noText := dsq.FilterKeyCompare{Op: dsq.LessThan, Key: "/\xff"}
	unknown := dsq.FilterKeyCompare{Op: "~", Key: "/k"}
	less := []keyCondition{{conditionLess, "/k"}}
	many, mostOfThem := make([]dsq.Filter, maxConditions+1), make([]keyCondition, maxConditions)
	for i := range many {
		many[i] = below
	}
	for i := range mostOfThem {
		mostOfThem[i] = less[0]
	}
	for name, c := range map[string]struct {
		q      dsq.Query
		pushed queryOptions
		rest   dsq.Query
	}{
		"everything": {
			dsq.Query{},
			queryOptions{prefix: "/"}, dsq.Query{},
		},
		"by key, with offset and limit": {
			dsq.Query{Prefix: "a/", Orders: []dsq.Order{dsq.OrderByKey{}, dsq.OrderByValue{}}, Offset: 3, Limit: 2, KeysOnly: true},
			queryOptions{prefix: "/a", offset: 3, limit: 2, keysOnly: true}, dsq.Query{KeysOnly: true},
		},
		"from the end, filtered by key": {
			dsq.Query{Orders: []dsq.Order{&dsq.OrderByKeyDescending{}}, Filters: []dsq.Filter{below, &below, dsq.FilterKeyPrefix{Prefix: "/a"}}, Offset: 3, Limit: 2},
			queryOptions{prefix: "/", conditions: []keyCondition{less[0], less[0], {conditionStartsWith, "/a"}}, descending: true, offset: 3, limit: 2}, dsq.Query{},
		},
		"a filter of values": {
			dsq.Query{Filters: []dsq.Filter{value, below}, Orders: []dsq.Order{dsq.OrderByKeyDescending{}}, Offset: 3, Limit: 2},
			queryOptions{prefix: "/", conditions: less, descending: true}, dsq.Query{Filters: []dsq.Filter{value}, Offset: 3, Limit: 2},
		},
		"an order of values": {
			dsq.Query{Filters: []dsq.Filter{below}, Orders: byValue, Offset: 3, Limit: 2},
			queryOptions{prefix: "/", conditions: less}, dsq.Query{Orders: byValue, Offset: 3, Limit: 2},
		},
		"what no key can hold, and an unknown comparison": {
			dsq.Query{Filters: []dsq.Filter{noText, unknown}, Limit: 2},
			queryOptions{prefix: "/"}, dsq.Query{Filters: []dsq.Filter{noText, unknown}, Limit: 2},
		},
		"too many": {
			dsq.Query{Filters: many, Limit: 2},
			queryOptions{prefix: "/", conditions: mostOfThem}, dsq.Query{Filters: many[:1], Limit: 2},
		},
		"nonsense": {
			dsq.Query{Offset: -1, Limit: -1},
			queryOptions{prefix: "/"}, dsq.Query{},
		},
	} {
		pushed, rest := split(c.q)
		if !reflect.DeepEqual(pushed, c.pushed) {
			t.Errorf("%s: the engine gets %+v, expected %+v", name, pushed, c.pushed)
		}
		if !reflect.DeepEqual(rest, c.rest) {
			t.Errorf("%s: left to do is %+v, expected %+v", name, rest, c.rest)
		}
	}
}
