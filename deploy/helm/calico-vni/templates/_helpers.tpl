{{/* Labels of an object; the argument is a list of the context and the component. */}}
{{- define "calico-vni.labels" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: calico-vni
app.kubernetes.io/component: {{ index . 1 }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
{{- end }}

{{/* Labels by which pods are found. They hold no version: a selector cannot change. */}}
{{- define "calico-vni.selector" -}}
app.kubernetes.io/name: calico-vni
app.kubernetes.io/component: {{ . }}
{{- end }}

{{/* An image's name; the argument is a list of the context and the image's values. */}}
{{- define "calico-vni.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}
