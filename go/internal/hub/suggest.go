package hub

import (
	"cmp"
	"context"
	"slices"
	"strings"
	"time"

	"github.com/agnivade/levenshtein"
	"github.com/ollama/ollama/types/model"

	"github.com/ollmlx/ollmlx/go/internal/modelname"
	"github.com/ollmlx/ollmlx/go/internal/runnerpb"
)

const (
	// suggestPatience bounds what a user waits for the better part of an error message.
	suggestPatience = 4 * time.Second
	// suggestSearches is how often the hub is asked, with less and less of the name.
	suggestSearches = 4
	suggestMost     = 3
)

// Suggest returns names of models on the hub that are spelled much like one that does not exist. It gives up silently: a
// suggestion is no answer.
func (c *Client) Suggest(ctx context.Context, n model.Name) []string {
	ctx, cancel := context.WithTimeout(ctx, suggestPatience)
	defer cancel()
	query := n.Model
	for range suggestSearches {
		found, err := c.Search(ctx, &runnerpb.SearchRequest{Query: query, Limit: 50, Mlx: true})
		if err != nil {
			return nil
		}
		if near := nearest(n, found); len(near) > 0 {
			return near
		}
		// The hub looks for the text as it is, and the mistake is somewhere in it.
		at := strings.LastIndexAny(query, "-_.")
		if at < 2 {
			at = len(query) / 2
		}
		if at < 2 {
			return nil
		}
		query = query[:at]
	}
	return nil
}

// nearest returns the closest names, the closest first.
func nearest(n model.Name, found []*runnerpb.HubModel) []string {
	type candidate struct {
		name     string
		distance int
	}
	var near []candidate
	wanted := strings.ToLower(n.Model)
	for _, m := range found {
		_, name, ok := strings.Cut(m.Repository, "/")
		d := levenshtein.ComputeDistance(wanted, strings.ToLower(name))
		if !ok || d > max(2, len(wanted)/3) || strings.EqualFold(m.Repository, n.Namespace+"/"+n.Model) {
			continue
		}
		parsed, err := modelname.Parse(modelname.HubHost + "/" + m.Repository)
		if err != nil {
			continue
		}
		near = append(near, candidate{strings.TrimSuffix(modelname.Display(parsed), ":"+modelname.DefaultTag), d})
	}
	slices.SortStableFunc(near, func(a, b candidate) int { return cmp.Compare(a.distance, b.distance) })
	var names []string
	for _, c := range near[:min(len(near), suggestMost)] {
		names = append(names, c.name)
	}
	return names
}
